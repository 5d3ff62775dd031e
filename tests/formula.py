"""The S2SD objective once more, plainly: float64, a loop a sum, nothing shared with the library."""

import math

import torch


def cosine(x, y):
    """Cosine similarity of two vectors, 0 where one is zero."""
    norms = math.sqrt(float((x.detach() ** 2).sum())) * math.sqrt(float((y.detach() ** 2).sum()))
    return (x * y).sum() / ((x**2).sum().sqrt() * (y**2).sum().sqrt()) if norms > 0 else (x * y).sum() * 0


def softmax(row):
    exponentials = [torch.exp(value - max(row).detach()) for value in row]
    return [e / sum(exponentials) for e in exponentials]


def kl(student, teacher, temperature, student_ref=None, teacher_ref=None):
    """T² / B · Σ_b Σ_r q_br · log(q_br / p_br), q from the teacher's similarities, p from the student's."""
    teacher = teacher.detach()
    student_ref = student if student_ref is None else student_ref
    teacher_ref = teacher if teacher_ref is None else teacher_ref.detach()
    total = 0.0
    for b in range(len(student)):
        p = softmax([cosine(student[b], r) / temperature for r in student_ref])
        q = softmax([cosine(teacher[b], r) / temperature for r in teacher_ref])
        total = total + sum(q_r * torch.log(q_r / p_r) for p_r, q_r in zip(p, q, strict=True))
    return temperature**2 / len(student) * total


def s2sd(L, z, aux, features, gamma, gamma_f, temperature, refs=None):
    """½ · [L(z) + (1/m) Σ L(a_i)] + γ · (1/m) Σ KL(D^z, D^{a_i}) + γ_F · KL(D^z, D^φ).

    L: one callable a space, base first. refs: (z, aux, features) of the references.
    """
    ref_z, ref_aux, ref_features = (None, [None] * len(aux), None) if refs is None else refs
    total = L[0](z)
    if aux:
        m = len(aux)
        total = 0.5 * (total + sum(loss(a) for loss, a in zip(L[1:], aux, strict=True)) / m)
        total = total + gamma / m * sum(kl(z, a, temperature, ref_z, r) for a, r in zip(aux, ref_aux, strict=True))
    return total + gamma_f * kl(z, features, temperature, ref_z, ref_features)
