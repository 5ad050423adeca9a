"SP, CCKD, RCKA and PCKA where a chapter would be dull: types, shapes, tiny batches, duplicates"
import pytest, torch
import torch.nn.functional as F
from fsd.baselines.relations import alignment, cckd, cosines, inner, patches, pcka, rcka, sp
from fsd.forms import exact
from fsd.losses import unit

D = torch.float64
losses = {'sp': sp, 'cckd': cckd, 'pcka': lambda *a: pcka(*a, size=3), 'rcka': lambda s, t, m=None: rcka(s.mean(1), t.mean(1)[:, :s.shape[2]])}
every = pytest.mark.parametrize('f', losses.values(), ids=losses)


def grad(f, s, *args):
    s = s.detach().clone().requires_grad_()
    loss = f(s, *args)
    assert loss.ndim == 0
    return loss.detach(), torch.autograd.grad(loss, s)[0]


@every
@pytest.mark.parametrize('dtype, want', [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float32), (D, D)])
def test_dtypes_and_autocast(f, dtype, want):
    torch.manual_seed(0)
    s, t = torch.randn(5, 7, 4).to(dtype), torch.randn(5, 7, 9).to(dtype)
    plain = f(s, t)
    with torch.autocast('cpu', dtype=torch.bfloat16): loss, g = grad(f, s, t)
    assert loss.dtype == plain.dtype == want and g.dtype == dtype
    assert torch.equal(loss, plain) or f is losses['rcka'] # its mean here is not the loss's


@every
@pytest.mark.parametrize('n, l, d_s, d_t', [(1, 1, 1, 1), (1, 5, 3, 4), (2, 1, 3, 4), (2, 7, 4, 4), (3, 3, 5, 8), (33, 4, 2, 3)])
@pytest.mark.parametrize('masked', [False, True])
def test_shapes(f, n, l, d_s, d_t, masked):
    torch.manual_seed(0)
    s, t = torch.randn(n, l, d_s), torch.randn(n, l, d_t)
    mask = torch.arange(l) < torch.randint(1, l + 1, (n, 1)) if masked else None
    loss, g = grad(f, s, t, mask)
    assert loss.isfinite() and g.isfinite().all() and loss >= -1e-6
    assert abs(f(t[..., :d_s], t[..., :d_s], mask)) < 1e-6


@pytest.mark.parametrize('f', [sp, cckd])
def test_one_example_and_none(f):
    for n in (0, 1):
        loss, g = grad(f, 1e3 * torch.randn(n, 4, 6), torch.randn(n, 4, 5))
        assert loss == 0 and not g.any()


@every
def test_duplicates_and_zeros(f):
    torch.manual_seed(0)
    t = torch.randn(6, 4, 5)
    for s in (torch.randn(1, 4, 5).expand(6, 4, 5), torch.zeros(6, 4, 5), torch.cat([torch.zeros(1, 4, 5), torch.randn(5, 4, 5)])):
        for a, b in ((s, t), (t, s), (s, s)):
            loss, g = grad(f, a, b)
            assert loss.isfinite() and g.isfinite().all() and g.abs().max() < 1e3


def test_an_offset_far_above_the_rest():
    torch.manual_seed(0)
    s, t = torch.randn(16, 8, 32) + 3, torch.randn(16, 8, 48) - 3
    for f in losses.values():
        if f is losses['rcka']: continue
        (a, ga), (b, gb) = grad(f, s, t), grad(f, s.to(D), t.to(D))
        assert (a - b).abs() / b < 1e-5 and (ga - gb).norm() / gb.norm() < 1e-5


def test_gradients():
    torch.manual_seed(0)
    s, t = torch.randn(4, 5, 3, dtype=D, requires_grad=True), torch.randn(4, 5, 6, dtype=D)
    for f in losses.values(): assert torch.autograd.gradcheck(lambda s: f(s, t), (s,))
    z, y = torch.randn(5, 3, dtype=D, requires_grad=True), torch.randn(5, 3, dtype=D)
    for args in ((True, None), (False, None), (True, 3.), (False, 3.)): assert torch.autograd.gradcheck(lambda z: rcka(z, y, *args), (z,))


def test_one_class():
    loss, g = grad(rcka, torch.randn(6, 1), torch.randn(6, 1))
    assert loss.isfinite() and g.isfinite().all()


def test_rcka_terms():
    torch.manual_seed(0)
    z, y = torch.randn(9, 4, dtype=D), torch.randn(9, 4, dtype=D)
    torch.testing.assert_close(rcka(z, y, False), 2 - alignment(z, y) - alignment(z.T, y.T))
    torch.testing.assert_close(rcka(z, y, False, 2.), 2 - alignment((z/2).softmax(1), (y/2).softmax(1)) - alignment(z.T, y.T))
    for shape in ((9, 3), (8, 4), (9, 4, 1)):
        with pytest.raises(ValueError, match='one shape'): rcka(z, torch.zeros(shape))


def test_patches():
    h = torch.arange(14.).view(1, 7, 2)
    p = patches(h, 3)
    assert p.shape == (1, 3, 6) and torch.equal(p[0, 0], torch.arange(6.)) and torch.equal(p[0, 2], torch.tensor([12., 13, 0, 0, 0, 0]))
    assert patches(h, 7).shape == (1, 1, 14) and patches(h, 50).shape == (1, 1, 100)


def test_pcka_leaves_out_examples_of_one_patch():
    torch.manual_seed(0)
    s, t = torch.randn(4, 8, 3), torch.randn(4, 8, 5)
    mask = torch.arange(8) < torch.tensor([8, 4, 0, 5])[:, None]
    rest = torch.tensor([0, 3])
    torch.testing.assert_close(pcka(s, t, mask, 4), pcka(s[rest], t[rest], mask[rest], 4))
    assert pcka(s[1:3], t[1:3], mask[1:3], 4) == 0


def test_small_pieces():
    x = torch.randn(5, 3); x[2] = 0
    assert torch.equal(unit(x)[2], torch.zeros(3)) and torch.equal(cosines(x).diagonal(), torch.tensor([1., 1, 0, 1, 1]).to(D))
    assert exact(x).dtype == inner(x).dtype == D
    torch.testing.assert_close(inner(x, True), exact(F.normalize(x) @ x.T))
