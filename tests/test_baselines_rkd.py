"RKD on features of FSD's kind: many dimensions, a large shared mean, padding, every precision and batch size"
import pytest, torch
import torch.nn.functional as F
from fsd.baselines.rkd import rkd, rkd_angle, rkd_distance


def direct(x_s, x_t):
    "Loops over anchors, so that no tensor has more than N x LD numbers."
    def relations(x):
        d = torch.stack([(x - e).norm(dim=-1) for e in x])
        return d / (d.sum() / (len(x)*(len(x) - 1))), torch.stack([(u := F.normalize(x - e, dim=-1)) @ u.mT for e in x])
    (d_s, a_s), (d_t, a_t) = relations(x_s), relations(x_t)
    return F.smooth_l1_loss(d_s, d_t) + 2 * F.smooth_l1_loss(a_s, a_t)


def features(n, length, width_s, width_t, offset):
    common = torch.randn(n, length, 4)
    return [common @ torch.randn(4, w) + torch.randn(n, length, w) + offset * torch.randn(length, w) for w in (width_s, width_t)]


@pytest.mark.parametrize('offset', [0, 5, 50])
@pytest.mark.parametrize('n', [3, 5, 32])
def test_exact_under_padding_and_offset(n, offset):
    torch.manual_seed(n)
    h_s, h_t = features(n, 24, 60, 90, offset)
    mask = torch.arange(24) < torch.randint(1, 25, (n, 1))
    for m in (None, mask):
        s = h_s.clone().requires_grad_(); s64 = h_s.double().requires_grad_()
        zeroed = [(h if m is None else h * m[..., None]).flatten(1) for h in (s64, h_t.double())]
        value, exact = rkd(s, h_t, m), direct(*zeroed)
        value.backward(); exact.backward()
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)
        assert (s.grad - s64.grad).norm() < 1e-6 * s64.grad.norm()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_precision(dtype):
    torch.manual_seed(0)
    s, t = (h.to(dtype) for h in features(6, 5, 8, 12, 1))
    s.requires_grad_()
    value = rkd(s, t)
    with torch.autocast('cpu', dtype=torch.bfloat16): assert rkd(s, t) == value
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(value.double(), rkd(s.double(), t.double()), rtol=1e-6, atol=0)
    g, = torch.autograd.grad(value, s)
    assert g.dtype == dtype and g.isfinite().all() and g.any()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('offset', [0, 1000])
def test_equal_examples_are_equal_wherever_they_lie(dtype, offset):
    torch.manual_seed(0)
    x = (torch.randn(33, 5000, dtype=dtype) + offset).requires_grad_()
    y = torch.randn(33, 40, dtype=dtype)
    order = torch.randint(0, 33, (33,))
    for f in (rkd_distance, rkd_angle):
        loss = f(x[order], y[order])
        g, = torch.autograd.grad(loss, x)
        assert loss > 0 and g.isfinite().all()
        assert f(x[order], x.detach()[order]) == 0
        torch.testing.assert_close(g.norm(), torch.autograd.grad(f(x[order] - offset, y[order]), x)[0].norm(), rtol=1e-5, atol=0)


@pytest.mark.parametrize('n', [1, 2])
def test_too_few(n):
    s = torch.randn(n, 4, 3, requires_grad=True)
    for m in (None, torch.ones(n, 4), torch.zeros(n, 4)):
        loss = rkd(s, torch.randn(n, 4, 7), m)
        g, = torch.autograd.grad(loss, s)
        assert loss < 1e-12 and g.abs().max() < 1e-6


def test_the_mean_counts_pairs_of_equal_examples():
    "Against loops over pairs: four of six examples are the same"
    torch.manual_seed(0)
    s, t = torch.randn(6, 9)[[0, 0, 0, 0, 1, 2]].double().requires_grad_(), torch.randn(6, 7).double()
    def relative(x):
        d = {(i, j): (x[i] - x[j]).norm() for i in range(6) for j in range(6) if i != j and not torch.equal(x[i], x[j])}
        mean = sum(d.values()) / 30
        return [[d[i, j] / mean if (i, j) in d else x.new_zeros(()) for j in range(6)] for i in range(6)]
    want = sum(F.smooth_l1_loss(a, b) for u, v in zip(relative(s), relative(t)) for a, b in zip(u, v)) / 36
    torch.testing.assert_close(rkd_distance(s, t), want)
    for a, b in zip(*(torch.autograd.grad(o, s) for o in (rkd_distance(s, t), want))): torch.testing.assert_close(a, b)
