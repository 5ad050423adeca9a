"Procrustes and Gram distance where a chapter would be dull: types, shapes, rank, tiny batches, duplicates"
import pytest, torch
import torch.nn.functional as F
from fsd.baselines.geometry import fidelity, gram_distance, procrustes, roots, unit_gram
from fsd.forms import lean_form

D = torch.float64
every = pytest.mark.parametrize('f', [procrustes, gram_distance])


def grad(f, s, *args):
    s = s.detach().clone().requires_grad_()
    loss = f(s, *args)
    assert loss.ndim == 0
    return loss.detach(), torch.autograd.grad(loss, s)[0]


def ready(h, width):
    x = F.pad(h.flatten(1), (0, width - h[0].numel()))
    x = x - x.mean(0)
    return x / x.norm()


def procrustes_64(s, t):
    width = max(s[0].numel(), t[0].numel())
    return 2 - 2 * torch.linalg.matrix_norm(ready(s, width).T @ ready(t, width), 'nuc')


def gram_64(s, t):
    x, y = ready(s, s[0].numel()), ready(t, t[0].numel())
    return (x @ x.T - y @ y.T).square().sum()


@pytest.mark.parametrize('ours, formula', [(procrustes, procrustes_64), (gram_distance, gram_64)])
@pytest.mark.parametrize('n, d_s, d_t', [(2, 3, 5), (6, 3, 3), (6, 20, 30), (24, 30, 20), (20, 4, 7), (20, 7, 4), (40, 1, 1)])
@pytest.mark.parametrize('offset', [0, 10])
@pytest.mark.parametrize('decay', [0, 4])
def test_formula(ours, formula, n, d_s, d_t, offset, decay):
    torch.manual_seed(n)
    w = lambda d: torch.rand(d).pow(decay)
    s, t = torch.randn(n, 2, d_s) * w(d_s) + offset, torch.randn(n, 2, d_t) * w(d_t) - offset
    (a, ga), (b, gb) = grad(ours, s, t), grad(formula, s.to(D), t.to(D))
    torch.testing.assert_close(a.to(D), b, rtol=1e-5, atol=1e-6)
    if n > 2: assert (ga - gb).norm() < 1e-5 * gb.norm()
    else: assert ga.norm() < 1e-6 # two examples lie on a line in every model


@every
def test_gradcheck(f):
    torch.manual_seed(0)
    s, t = torch.randn(6, 2, 4, dtype=D, requires_grad=True), torch.randn(6, 2, 3, dtype=D)
    assert torch.autograd.gradcheck(lambda s: f(s, t), (s,))


@every
@pytest.mark.parametrize('dtype, want', [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float32), (D, D)])
def test_dtypes_and_autocast(f, dtype, want):
    torch.manual_seed(0)
    s, t = torch.randn(5, 7, 4).to(dtype), torch.randn(5, 7, 9).to(dtype)
    with torch.autocast('cpu', dtype=torch.bfloat16): loss, g = grad(f, s, t)
    assert loss.dtype == want and g.dtype == dtype
    torch.testing.assert_close(loss, f(s, t), rtol=1e-6, atol=0)


@every
def test_the_lean_form_under_autocast_and_of_two_precisions(f):
    torch.manual_seed(0)
    s, t = torch.randn(5, 7, 4), torch.randn(5, 7, 9)
    with lean_form():
        loss = f(s, t)
        with torch.autocast('cpu', dtype=torch.bfloat16): assert f(s, t) == loss
        for o in ((s.double(), t), (s, t.double())): torch.testing.assert_close(f(*o), loss.double(), rtol=1e-4, atol=0)


@every
def test_none_one_and_two_examples(f):
    for n in (0, 1, 2):
        loss, g = grad(f, 1e3 * torch.randn(n, 4, 6), torch.randn(n, 4, 5))
        assert loss.abs() < 1e-6 and g.abs().sum() < 1e-6
        if n < 2: assert loss == 0 and not g.any()


@every
@pytest.mark.parametrize('of', [1e-6, 1., 1e4])
def test_same_features(f, of):
    torch.manual_seed(0)
    for h in (torch.randn(9, 3, 5), torch.randn(9, 1, 2), torch.randn(3, 3, 5)[[0, 0, 0, 1, 1, 2]]):
        loss, g = grad(f, of * h, of * h)
        assert loss.abs() < 1e-12 and (of * g).abs().max() < 1e-6


@every
def test_duplicates_and_constants(f):
    torch.manual_seed(0)
    t = torch.randn(6, 4, 5)
    same, few = torch.full((6, 4, 5), .1), torch.randn(2, 4, 5)[[0, 0, 1, 1, 1, 0]]
    for s in (same, few, torch.zeros(6, 4, 5)):
        for a, b in ((s, t), (t, s), (s, s), (s, few)):
            loss, g = grad(f, a, b)
            assert loss.isfinite() and g.isfinite().all() and g.abs().max() < 10
    for collapsed in (same, torch.zeros(6, 4, 5)): assert not grad(f, collapsed, t)[1].any()


def test_fidelity_is_symmetric_and_at_most_one():
    torch.manual_seed(0)
    for n, a, b in ((8, 3, 5), (8, 30, 2), (20, 40, 40)):
        k, t = unit_gram(torch.randn(n, a)), unit_gram(torch.randn(n, b))
        torch.testing.assert_close(fidelity(k, t), fidelity(t, k), atol=1e-7, rtol=0)
        assert 0 < fidelity(k, t) < 1
        torch.testing.assert_close(fidelity(t, t), torch.tensor(1., dtype=D))


def test_roots():
    e = torch.tensor([-1e-17, 0, 1e-18, 4, 9], dtype=D, requires_grad=True)
    r = roots(e)
    assert r.tolist() == [0, 0, 0, 2, 3]
    r.sum().backward()
    assert e.grad.tolist() == [0, 0, 0, 1/4, 1/6]
    assert roots(torch.zeros(0, dtype=D)).numel() == 0
