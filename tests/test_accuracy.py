"""RetrievalAccuracyCalculator: every metric against plain loops, PML's own against PML, hand-made cases, bad input."""

import contextlib
import copy
import io
import pickle

import metrics as plain
import numpy as np
import pytest
import torch
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from pml_s2sd import S2SDEmbeddings
from pml_s2sd.evaluation import neighbours
from pml_s2sd.evaluation.accuracy import RetrievalAccuracyCalculator
from pml_s2sd.evaluation.neighbours import ApproximateKNN

CPU = torch.device("cpu")
WAYS = {"mean": {}, "mean of classes": {"avg_of_avgs": True}, "classes": {"return_per_class": True}}
BY_QUERY = [
    *("precision_at_1", "r_precision", "mean_average_precision", "mean_average_precision_at_r"),
    *("mean_reciprocal_rank", "mean_average_precision_at_1000", "recall_at_1", "recall_at_3", "recall_at_10"),
]
PML = [*BY_QUERY[:5], "NMI", "AMI"]


ALL_DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *("bool", "int8", "uint16", "uint64", "int64", "float16", "float64", ">i4", ">f8"),
]
"""Of torch, and by name of numpy; two of them in the other order of bytes."""


def calculator(*include, recall_at=(1, 3, 10), **options):
    return RetrievalAccuracyCalculator(include, device=CPU, recall_at=recall_at, **options)


def random_space(rows, seed, classes=12, d=5):
    """Embeddings about their classes' centres; labels of which some occur once."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    labels[:3] = 100 + seed, 200 + seed, 300  # lone ones; the last in every space
    centres = np.random.default_rng(9).normal(size=(400, d))
    return (centres[labels] + generator.normal(size=(rows, d))).astype(np.float32), labels


def arguments(case):
    query, labels = random_space(60, seed=0)
    other, other_labels = random_space(80, seed=1)
    if case == "among themselves":
        return query, labels, query, labels, True
    if case == "other references":
        return query, labels, other, other_labels, False
    return query, labels, np.concatenate([query, other]), np.concatenate([labels, other_labels]), True


CASES = ("among themselves", "other references", "queries first among references")


@pytest.fixture(params=[4096, 7], ids=["one block", "blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", request.param)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_metrics_over_queries_equal_plain_loops(case, how, blocks):
    found = calculator(*BY_QUERY, **WAYS[how]).get_accuracy(*arguments(case))
    assert list(found) == sorted(BY_QUERY)
    for metric in BY_QUERY:
        np.testing.assert_allclose(found[metric], plain.over_queries(metric, *arguments(case), how), atol=1e-12)


@pytest.mark.parametrize("k", ["max_bin_count", None, 4])
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_pmls_metrics_are_pmls(case, how, k, blocks):
    expected = AccuracyCalculator(device=CPU, k=k, **WAYS[how]).get_accuracy(*arguments(case))
    found = calculator(k=k, **WAYS[how]).get_accuracy(*arguments(case))
    assert set(expected) == set(PML) < set(found)
    for metric, value in expected.items():
        tolerance = 1e-6 if metric == "mean_reciprocal_rank" else 1e-12  # PML's is in float32
        np.testing.assert_allclose(found[metric], value, rtol=0, atol=tolerance, err_msg=metric)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_metrics_on_a_gpu_are_those_of_the_cpu(case):
    """The search runs on the GPU too where faiss was built for it."""
    expected = calculator(*BY_QUERY).get_accuracy(*arguments(case))
    on_gpu = RetrievalAccuracyCalculator(BY_QUERY, device=torch.device("cuda"), recall_at=(1, 3, 10))
    *given, includes = (torch.as_tensor(of).cuda() if isinstance(of, np.ndarray) else of for of in arguments(case))
    assert on_gpu.get_accuracy(*given, includes) == pytest.approx(expected, abs=1e-5)


def test_clustering_equals_a_plain_computation():
    x, labels = random_space(60, seed=0)
    clusters = (np.arange(60) * 7 % 60) // 4
    found = calculator("f1", "NMI", kmeans_func=lambda x, n: torch.from_numpy(clusters)).get_accuracy(x, labels)
    assert found["f1"] == pytest.approx(plain.pairwise_f1(labels, clusters), abs=1e-12)
    assert found["NMI"] == pytest.approx(plain.nmi(labels, clusters), abs=1e-12)


def test_properties_of_the_space_equal_a_plain_computation():
    x, labels = random_space(60, seed=0)
    other = random_space(80, seed=1)
    found = calculator("spectral_decay", "effective_rank", "embedding_density").get_accuracy(x, labels, *other)
    assert found["spectral_decay"] == pytest.approx(plain.spectral_decay(x), abs=1e-10)
    assert found["effective_rank"] == pytest.approx(plain.effective_rank(x), abs=1e-10)
    assert found["embedding_density"] == pytest.approx(plain.embedding_density(x, labels), abs=1e-10)


def test_a_case_by_hand():
    x = torch.tensor([[0.0], [1.0], [2.5], [4.5], [7.0]])
    labels = torch.tensor([0, 1, 0, 1, 2])  # the class 2 has one member: left out
    # by distance: 0: 1 0 1 2 | 1: 0 0 1 2 | 2.5: 1 1 0 2 | 4.5: 0 2 1 0
    found = calculator("recall_at_1", "recall_at_3", "mean_average_precision_at_1000").get_accuracy(x, labels)
    expected = {
        "mean_average_precision_at_1000": (1 / 2 + 1 / 3 + 1 / 3 + 1 / 3) / 4,
        "recall_at_1": 0,
        "recall_at_3": 1,
    }
    assert found == pytest.approx(expected)
    by_class = calculator("recall_at_2", recall_at=(2,), return_per_class=True).get_accuracy(x, labels)
    assert by_class == {"recall_at_2": [0.5, 0.0]}


def test_ties_are_as_in_pml():
    """Identical embeddings: who comes first, and whether a query finds itself, is up to the search."""
    x, labels = torch.ones(30, 4), torch.arange(30) % 5
    found = calculator(*BY_QUERY, "NMI").get_accuracy(x, labels)
    expected = AccuracyCalculator(device=CPU, k="max_bin_count").get_accuracy(x, labels)
    for metric in PML[:5]:
        assert found[metric] == pytest.approx(expected[metric], abs=1e-6)
    assert found["recall_at_1"] == found["precision_at_1"]
    assert found["recall_at_10"] >= found["recall_at_3"]


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", np.nan), ("mean of classes", np.nan), ("classes", [np.nan] * 3)]
)
def test_no_query_has_its_class_among_the_references(how, expected):
    given = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2]), torch.randn(4, 3), torch.tensor([7, 7, 8, 8])
    found = calculator("recall_at_1", "precision_at_1", **WAYS[how]).get_accuracy(*given)
    reference = AccuracyCalculator(include=("precision_at_1",), device=CPU, **WAYS[how]).get_accuracy(*given)
    np.testing.assert_equal(found, {"precision_at_1": expected, "recall_at_1": expected})
    np.testing.assert_equal(reference["precision_at_1"], expected)


def test_a_k_above_the_number_of_references_is_cut_to_it():
    x, labels = random_space(20, seed=0, classes=2)
    found = calculator("recall_at_1000", "mean_average_precision_at_1000", recall_at=(1000,)).get_accuracy(x, labels)
    assert found["recall_at_1000"] == 1.0
    given = x, labels, x, labels, True
    expected = plain.over_queries("mean_average_precision_at_1000", *given)
    assert found["mean_average_precision_at_1000"] == pytest.approx(expected, abs=1e-12)


def test_large_labels_are_told_apart():
    """In float32, 2²⁴ and 2²⁴ + 1 are the same."""
    x, labels = torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 1, 0, 1]) + 2**24
    assert calculator("recall_at_1").get_accuracy(x, labels) == {"recall_at_1": 0.0}


def test_neighbours_that_an_index_does_not_find_are_wrong_ones():
    def finds_one(query, k, reference, ref_includes_query=False):
        indices = torch.full((len(query), k), -1)
        indices[:, 0] = 0
        return torch.zeros(len(query), k), indices

    x, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 1])  # -1 would be the last one, of class 1
    found = calculator("recall_at_3", "r_precision", knn_func=finds_one).get_accuracy(x[1:], labels[1:], x, labels)
    assert found == {"r_precision": 0.0, "recall_at_3": 0.0}


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_approximate_index_serves_as_knn_func(kind, capsys):
    x, labels = random_space(500, seed=0)
    knn = ApproximateKNN(kind)
    found = calculator("recall_at_1", "r_precision", knn_func=knn).get_accuracy(x, labels)
    exact = calculator("recall_at_1", "r_precision").get_accuracy(x, labels)
    assert knn.recall > 0.99
    assert found == pytest.approx(exact, abs=0.02)
    assert capsys.readouterr().out.startswith(f"{kind}: ")


@pytest.mark.parametrize("how", WAYS)
def test_another_comparison_of_labels_is_left_to_pml(how):
    given = arguments("among themselves")

    def same_parity(a, b):
        return a % 2 == b % 2

    options = {"label_comparison_fn": same_parity, **WAYS[how]}
    found = calculator(*BY_QUERY, **options).get_accuracy(*given)
    x, labels, *_ = given
    expected = calculator(*BY_QUERY, **{**options, "label_comparison_fn": None}).get_accuracy(x, labels % 2)
    exclude = ("NMI", "AMI")
    by_pml = AccuracyCalculator(exclude=exclude, device=CPU, k="max_bin_count", **options).get_accuracy(*given)
    for metric in by_pml:
        np.testing.assert_allclose(found[metric], by_pml[metric], atol=1e-12)
    if how == "mean":
        assert found["recall_at_3"] == pytest.approx(expected["recall_at_3"], abs=1e-12)
        assert found["recall_at_1"] == found["precision_at_1"]


def test_metrics_that_a_subclass_adds():
    class Mine(RetrievalAccuracyCalculator):
        def calculate_seen(self, knn_labels, **kwargs):
            return tuple(knn_labels.shape)

        def requires_knn(self):
            return [*super().requires_knn(), "seen"]

    x, labels = torch.randn(12, 3), torch.arange(12) // 4
    mine = Mine(include=("seen", "recall_at_8", "r_precision"), device=CPU)
    found = mine.get_accuracy(x, labels)
    assert found["seen"] == (12, 3)  # max_bin_count, less itself
    assert found["recall_at_8"] == calculator("recall_at_8", recall_at=(8,)).get_accuracy(x, labels)["recall_at_8"]


def test_in_a_tester_with_queries_and_references():
    sets = {
        name: list(zip(*map(torch.as_tensor, random_space(60, seed)), strict=True)) for seed, name in enumerate("qr")
    }
    tester = GlobalEmbeddingSpaceTester(
        normalize_embeddings=False,
        dataloader_num_workers=0,
        data_device=CPU,
        accuracy_calculator=calculator("recall_at_3", "f1", "spectral_decay"),
    )
    with contextlib.redirect_stderr(io.StringIO()):
        found = tester.test(sets, 0, torch.nn.Identity(), splits_to_eval=[("q", ["r"])])["q"]
    given = *random_space(60, 0), *random_space(60, 1), False
    assert found["recall_at_3_level0"] == pytest.approx(plain.over_queries("recall_at_3", *given), abs=1e-12)
    assert found["spectral_decay_level0"] == pytest.approx(plain.spectral_decay(given[0]), abs=1e-6)
    assert 0 < found["f1_level0"] < 1


def test_another_distance_and_include_at_the_call():
    from pytorch_metric_learning.distances import CosineSimilarity

    x, labels = random_space(60, seed=0)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    by_cosine = calculator(knn_func=CustomKNN(CosineSimilarity()))
    found = by_cosine.get_accuracy(x, labels, include=("recall_at_3",))
    assert found == pytest.approx({"recall_at_3": plain.over_queries("recall_at_3", unit, labels, unit, labels, True)})
    assert by_cosine.get_curr_metrics() == ["recall_at_3"]
    assert "recall_at_3" not in by_cosine.get_accuracy(x, labels, exclude=("recall_at_3",))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copy_is_a_calculator_of_its_own(copied):
    original = calculator("recall_at_1", "recall_at_3")
    other = copied(original)
    other.return_per_class = True
    x, labels = torch.tensor([[0.0], [0.1], [5.0], [5.1]]), torch.tensor([0, 0, 1, 1])
    assert original.get_accuracy(x, labels)["recall_at_1"] == 1.0
    assert other.get_accuracy(x, labels)["recall_at_1"] == [1.0, 1.0]


def test_bad_input_is_named():
    x, labels = torch.randn(6, 3), torch.arange(6) // 2
    with pytest.raises(ValueError, match="each of recall_at must be at least 1, got 0"):
        calculator(recall_at=(1, 0))
    with pytest.raises(ValueError, match=r"must be one or more of: .*'recall_at_3'"):
        calculator("recall_at_7")
    one = calculator("recall_at_1")
    with pytest.raises(ValueError, match=r"query must be embeddings of shape \(N, d\), N at least 1, got shape \(6,\)"):
        one.get_accuracy(x[:, 0], labels)
    with pytest.raises(ValueError, match="reference has 6 embeddings and 5 labels"):
        one.get_accuracy(x, labels, x.clone(), labels[:5])
    with pytest.raises(ValueError, match="query has embeddings of size 3, reference of size 2"):
        one.get_accuracy(x, labels, x[:, :2], labels)
    with pytest.raises(ValueError, match="query holds 2 embeddings of 6 that are NaN or infinite"):
        one.get_accuracy(x.clone().index_fill_(0, torch.tensor([1, 4]), torch.nan), labels)
    with pytest.raises(ValueError, match="the first len"):
        one.get_accuracy(x, labels, x.flip(0), labels, True)
    with pytest.raises(ValueError, match="the first len"):
        one.get_accuracy(x, labels, x, labels.flip(0), True)
    with pytest.raises(ValueError, match="reference_labels are given without reference"):
        one.get_accuracy(x, labels, None, labels)
    with pytest.raises(ValueError, match=r"metrics, recall_at_1; got \('recall_at_3',\) and"):
        one.get_accuracy(x, labels, include=("recall_at_3",))
    with pytest.raises(ValueError, match=r"sequences of this calculator's metrics.* got 'recall_at_1' and"):
        one.get_accuracy(x, labels, include="recall_at_1")
    with pytest.raises(TypeError, match=r"query must be embeddings, numbers of shape \(N, d\), got list of str_"):
        one.get_accuracy([["a"]] * 6, labels)
    with pytest.raises(ValueError, match="query holds 1 embeddings of 6 that are NaN or infinite"):  # in float32
        one.get_accuracy(torch.diag(torch.tensor([1e300, 0, 0, 0, 0, 0], dtype=torch.float64)), labels)


@pytest.mark.parametrize("wrap", [lambda labels: labels, lambda labels: labels[:, None]], ids=["(N,)", "(N, 1)"])
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_labels_of_every_dtype_are_the_same_classes(dtype, wrap):
    """As queries', as references', and of another dtype than the others'; every metric."""
    x, other = torch.randn(40, 4), torch.randn(50, 4)
    labels, of_other = torch.arange(40) % 2, torch.arange(50) % 2
    every = calculator()
    expected = every.get_accuracy(x, labels), every.get_accuracy(x, labels, other, of_other)
    convert = (lambda a: a.to(dtype)) if isinstance(dtype, torch.dtype) else (lambda a: a.numpy().astype(dtype))
    assert every.get_accuracy(x, wrap(convert(labels))) == expected[0]
    for query, reference in ((convert, convert), (convert, torch.Tensor.int), (torch.Tensor.int, convert)):
        assert every.get_accuracy(x, wrap(query(labels)), other, wrap(reference(of_other))) == expected[1]
    if str(dtype) != "torch.bfloat16":
        pml = AccuracyCalculator(device=CPU, k="max_bin_count")
        native = not isinstance(dtype, str) or dtype not in (">i4", ">f8")
        theirs = pml.get_accuracy(x, convert(labels) if native else labels)
        assert theirs["precision_at_1"] == pytest.approx(expected[0]["precision_at_1"], abs=1e-12)


def test_lists_and_embeddings_of_all_spaces_are_taken():
    x, labels = torch.randn(12, 4), torch.arange(12) // 3
    one = calculator("recall_at_1", "r_precision", "effective_rank")
    expected = one.get_accuracy(x, labels)
    assert one.get_accuracy(x.tolist(), labels.tolist()) == expected
    assert one.get_accuracy(x.numpy()[::-1], labels.numpy()[::-1]) == pytest.approx(expected)
    assert one.get_accuracy(S2SDEmbeddings(x, (), x), labels) == expected


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64, torch.float64, torch.int32, torch.uint32])
def test_large_labels_of_every_wide_dtype_are_told_apart(dtype):
    x = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
    labels = (torch.tensor([0, 1, 0, 1]) + 2**24).to(dtype)
    assert calculator("recall_at_1").get_accuracy(x, labels) == {"recall_at_1": 0.0}
    if dtype in (torch.int64, torch.uint64):
        assert calculator("recall_at_1").get_accuracy(x, (labels.long() + 2**60).to(dtype)) == {"recall_at_1": 0.0}


def test_reference_labels_count_where_the_references_are_the_queries():
    x, labels, others = torch.randn(40, 4), torch.arange(40) // 4, torch.randint(0, 10, (40,))
    given = {"include": ("precision_at_1", "r_precision")}
    found = calculator(*given["include"]).get_accuracy(x, labels, x, others)
    assert found == calculator(*given["include"]).get_accuracy(x, labels, x.clone(), others)
    expected = AccuracyCalculator(**given, device=CPU, k="max_bin_count").get_accuracy(x, labels, x, others)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found != calculator(*given["include"]).get_accuracy(x, labels, x, labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "a", "b", "b"], r"query_labels must be numbers, .* got list of str_; number .*numpy.unique"),
        (np.array(["a", "b", None, "b"], dtype=object), "query_labels must be numbers, .* got ndarray of str"),
        (None, "query_labels must be numbers, .* got None"),
        (torch.ones(4, dtype=torch.complex64), "query_labels must be numbers, .* got Tensor of complex64"),
        (torch.tensor([0, 0, 1, torch.nan]), "query_labels holds NaN, which is no class; leave these samples out"),
        (np.array([0, 1, 0, 2**63], dtype=np.uint64), "query_labels holds labels of 2⁶³ and above"),
        (torch.tensor(3), r"query_labels must have shape \(N,\), .* got shape \(\)"),
        (torch.ones(4, 2, 2), r"query_labels must have shape \(N,\), .* got shape \(4, 2, 2\)"),
        (torch.ones(4, 2), "there are 2 labels a sample, which label_comparison_fn has to compare"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    one = calculator("recall_at_1", "f1")
    before = one.curr_function_dict
    with pytest.raises((TypeError, ValueError), match=message):
        one.get_accuracy(torch.randn(4, 2), labels, include=("f1",))
    assert one.curr_function_dict is before


def test_the_advice_for_names_works_over_queries_and_references():
    names, others = ["b", "a", "b", "a"], ["a", "c", "b"]
    numbers = np.unique([*names, *others], return_inverse=True)[1]
    x = torch.tensor([[1.0], [0.0], [1.1], [0.1], [0.05], [9.0], [1.05]])
    found = calculator("recall_at_1").get_accuracy(x[:4], numbers[:4], x[4:], numbers[4:])
    assert found == {"recall_at_1": 1.0}


def test_several_labels_a_sample_are_compared_by_the_users_function():
    x, labels = torch.randn(12, 3), torch.stack([torch.arange(12) // 4, torch.arange(12)], dim=1)

    def same_first(a, b):
        return a[..., 0] == b[..., 0]

    metrics = ("recall_at_1", "precision_at_1", "effective_rank")
    found = calculator(*metrics, label_comparison_fn=same_first).get_accuracy(x, labels)
    assert found == calculator(*metrics).get_accuracy(x, labels[:, 0])
    assert calculator("effective_rank").get_accuracy(x, labels) == {"effective_rank": found["effective_rank"]}
    with pytest.raises(ValueError, match="embedding_density needs one label a sample, got 2; exclude it"):
        calculator("embedding_density", label_comparison_fn=same_first).get_accuracy(x, labels)
    with pytest.raises(ValueError, match=r"as many columns, got shapes \(12, 2\) and \(12,\)"):
        calculator("recall_at_1", label_comparison_fn=same_first).get_accuracy(x, labels, x.clone(), labels[:, 0])
