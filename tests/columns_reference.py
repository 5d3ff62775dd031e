"""The KL against some columns once more, plainly: a loop over rows and columns, nothing shared with the library."""

import torch
from formula import cosine


def kl_of_row(student, teacher, weights, temperature):
    """T² Σ_r q_r log(q_r / p_r), with p_r = w_r exp(s_r / T) / Σ_k w_k exp(s_k / T), and q likewise."""

    def log_probs(similarities):
        parts = [weight * torch.exp(s / temperature) for weight, s in zip(weights, similarities, strict=True)]
        return [torch.log(part / sum(parts)) for part in parts]

    pairs = zip(log_probs(student), log_probs(teacher), strict=True)
    return temperature**2 * sum(torch.exp(q) * (q - p) for p, q in pairs)


def drawn_kl(z, t, z_ref, t_ref, drawn, own, keep_own, temperature, D=cosine):
    """The mean over rows: row b against the columns drawn and, where it is kept, its own, own[b], or -1 for none.

    The columns drawn stand for all but the own one, which stands for itself.
    """
    t, t_ref = t.detach(), t_ref.detach()
    total = 0.0
    for b in range(len(z)):
        others = [r for r in drawn if r != own[b]]
        columns, weights = others, [1.0] * len(others)
        if keep_own and own[b] >= 0:
            columns, weights = [*others, own[b]], [(len(z_ref) - 1) / len(others)] * len(others) + [1.0]
        student, teacher = ([D(x[b], ref[r]) for r in columns] for x, ref in ((z, z_ref), (t, t_ref)))
        total = total + kl_of_row(student, teacher, weights, temperature)
    return total / len(z)


def kl_of_rows(z, t, rows, drawn, keep_own, temperature):
    """Of a batch compared with itself, (rows,)."""
    rows = list(rows)
    return torch.stack([drawn_kl(z[[b]], t[[b]], z, t, drawn, [b], keep_own, temperature) for b in rows])
