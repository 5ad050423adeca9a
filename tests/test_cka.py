"CKA where the notebook does not look: blocks that do not divide the shape, both sides' gradients, dtypes, scales, broken input"
import pytest, torch
from fsd.cka import center, gram, hsic, linear_cka, minibatch_cka

D = torch.float64


def reference(x, y, debiased=False):
    "From the formulas, in float64"
    k, l = (o.to(D) @ o.to(D).mT for o in (x, y))
    n = x.shape[-2]
    if debiased:
        eye = torch.eye(n, dtype=D)
        def h(k, l):
            k, l = k * (1 - eye), l * (1 - eye)
            kl = (k @ l)
            return (kl.diagonal(0, -2, -1).sum(-1) + k.sum((-2, -1)) * l.sum((-2, -1)) / ((n - 1) * (n - 2)) - 2 / (n - 2) * kl.sum((-2, -1))) / (n * (n - 3))
    else:
        c = torch.eye(n, dtype=D) - 1 / n
        def h(k, l): return (k @ c @ l @ c).diagonal(0, -2, -1).sum(-1)
    return h(k, l) / (h(k, k) * h(l, l)).sqrt()


def grads(f, *xs):
    xs = [x.detach().requires_grad_() for x in xs]
    return torch.autograd.grad(f(*xs).square().sum(), xs)


@pytest.mark.parametrize('debiased', [False, True])
@pytest.mark.parametrize('shape', [(6, 3), (40, 20_001), (1, 40, 20_001), (7, 64, 1001), (2, 3, 8, 5), (600, 700), (2, 2)])
def test_values_and_both_gradients(shape, debiased):
    if debiased and shape[-2] < 4: pytest.skip('undefined')
    torch.manual_seed(0)
    x, y = torch.randn(shape) + 1, torch.randn(*shape[:-1], 30) + 2
    ours, true = (grads(lambda a, b: f(a, b, debiased=debiased), x.to(D), y.to(D)) for f in (linear_cka, reference))
    torch.testing.assert_close(linear_cka(x, y, debiased=debiased), reference(x, y, debiased).float(), rtol=1e-4, atol=1e-5)
    for a, b in zip(ours, true): torch.testing.assert_close(a, b)


@pytest.mark.parametrize('debiased', [False, True])
def test_gradcheck_masked(debiased):
    torch.manual_seed(0)
    x, y = (torch.randn(3, 7, d, dtype=D, requires_grad=True) for d in (5, 4))
    mask = torch.arange(7) < torch.tensor([7, 5, 4])[:, None]
    assert torch.autograd.gradcheck(lambda a, b: linear_cka(a, b, mask, debiased), (x, y))
    dx, = torch.autograd.grad(linear_cka(x, y, mask, debiased).sum(), x)
    assert (dx[~mask] == 0).all()


def test_weights_are_repeats():
    x, y = torch.randn(4, 5, dtype=D), torch.randn(4, 3, dtype=D)
    w = torch.tensor([1, 2, 1, 3])
    torch.testing.assert_close(linear_cka(x, y, w), linear_cka(x.repeat_interleave(w, 0), y.repeat_interleave(w, 0)))


@pytest.mark.parametrize('debiased', [False, True])
@pytest.mark.parametrize('n', [1, 2, 3, 4, 17, 128, 1000, 4096])
def test_constant_features(n, debiased):
    x = (torch.randn(6) * 10**torch.randn(6)).expand(n, 6).clone().requires_grad_()
    y = torch.randn(n, 5, requires_grad=True)
    linear_cka(x, y, debiased=debiased).backward()
    assert (x.grad == 0).all() and (y.grad == 0).all()


@pytest.mark.parametrize('debiased', [False, True])
def test_masked_rows_that_leave_too_few(debiased):
    x, y = torch.randn(3, 6, 4, requires_grad=True), torch.randn(3, 6, 4)
    mask = torch.tensor([[1] * 6, [1] + [0] * 5, [0] * 6])
    c = linear_cka(x, y, mask, debiased)
    c.sum().backward()
    assert c[0] != 0 and (c[1:] == 0).all() and (x.grad[1:] == 0).all() and x.grad.isfinite().all()


@pytest.mark.parametrize('scale', [1e-30, 3e-13, 1e-6, 1e6, 3e8, 1e30])
def test_scale(scale):
    x, y = torch.randn(32, 200), torch.randn(32, 200)
    torch.testing.assert_close(linear_cka(scale * x, y), linear_cka(x, y))


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('n', [1, 8])
def test_bad_numbers_stay_bad(bad, n):
    x, y = torch.randn(n, 5), torch.randn(n, 5)
    x[0, 0] = bad
    for d in (False, True):
        assert linear_cka(x, y, debiased=d).isnan() and linear_cka(y, x, debiased=d).isnan()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    x, y = torch.randn(9, 5).to(dtype).requires_grad_(), torch.randn(9, 5)
    c = linear_cka(x, y)
    assert c.dtype == (D if dtype == D else torch.float32)
    c.backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()
    assert linear_cka(y, y.to(D)).dtype == D


def test_autocast_changes_nothing():
    x, y = torch.randn(9, 50, requires_grad=True), torch.randn(9, 50)
    plain, = torch.autograd.grad(linear_cka(x, y), x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        cast, = torch.autograd.grad(linear_cka(x, y), x)
        half = x.detach().bfloat16().requires_grad_()
        g, = torch.autograd.grad(linear_cka(half, y), half)
    assert torch.equal(plain, cast)
    torch.testing.assert_close(g.float(), plain, rtol=.05, atol=.05 * plain.abs().max().item())


def test_layouts():
    x, y = torch.randn(40, 9, dtype=D).T, torch.randn(9, 3, 20, dtype=D)
    torch.testing.assert_close(linear_cka(x, y[:, 1]), reference(x, y[:, 1]))
    g, = grads(lambda a: linear_cka(a, y[:, 1]), x)
    torch.testing.assert_close(g, grads(lambda a: reference(a, y[:, 1]), x)[0])


def test_hsic_small():
    k = torch.randn(2, 3, 3)
    assert (hsic(k, k, debiased=True) == 0).all() and (hsic(k[:, :1, :1], k[:, :1, :1]) == 0).all()


def test_minibatch_skips_what_is_too_small():
    x, y = torch.randn(19, 5), torch.randn(19, 6)
    pairs = list(zip(x.split(8), y.split(8)))
    assert len(pairs[-1][0]) == 3
    assert torch.equal(minibatch_cka(pairs), minibatch_cka(pairs[:-1]))
    assert minibatch_cka(pairs[-1:]) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_cuda():
    x, y = torch.randn(4, 32, 700, dtype=D), torch.randn(4, 32, 600, dtype=D)
    a, b = grads(linear_cka, x, y), grads(linear_cka, x.cuda(), y.cuda())
    for o, p in zip(a, b): torch.testing.assert_close(o, p.cpu())


@pytest.mark.parametrize('n', [500, 2000])
def test_many_samples_far_from_the_origin(n):
    torch.manual_seed(0)
    x = torch.randn(n, 10); y = x + .5*torch.randn(n, 10)
    torch.testing.assert_close(linear_cka(x + 5000, y), linear_cka((x + 5000).to(D), y.to(D)).float(), rtol=1e-5, atol=0)


def test_debiased_cka_of_samples_that_are_all_equally_far_apart_is_none():
    q = torch.linalg.qr(torch.randn(40, 40)).Q[:9]
    assert linear_cka(q, torch.randn(9, 5), debiased=True) == 0


def test_what_has_weight_0_is_not_read():
    x, y = torch.randn(3, 9, 5), torch.randn(3, 9, 4)
    mask = torch.ones(3, 9); mask[:, :5] = 0
    want, x[:, :5] = linear_cka(x, y, mask), float('nan')
    x.requires_grad_()
    got = linear_cka(x, y, mask)
    got.sum().backward()
    torch.testing.assert_close(got.detach(), want)
    assert x.grad.isfinite().all()


def test_refusals():
    r = torch.randn
    for pair in ((r(8, 6, 5), r(8, 6, 5)), (r(8, 5), r(1, 5)), (r(8), r(8))):
        with pytest.raises(ValueError, match='same samples'): minibatch_cka([pair])
    for f in (lambda a: linear_cka(a, a), lambda a: minibatch_cka([(a, a)]), gram, lambda a: hsic(a, a), center):
        with pytest.raises(TypeError, match='from_numpy'): f(r(4, 4).numpy())
    with pytest.raises(ValueError, match='square'): hsic(r(4, 4), r(5, 5))
    with pytest.raises(ValueError, match='at least 0'): linear_cka(r(4, 4), r(4, 4), torch.tensor([1., -1, 1, 1]))

def test_the_gradient_of_a_gram_matrix_under_weights_that_are_0_is_that_of_its_values():
    from fsd.cka import gram
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=g, dtype=torch.float64, requires_grad=True)
    c,w = torch.randn(5, 5, generator=g, dtype=torch.float64),torch.tensor([1.,2,1,0,0], dtype=torch.float64)
    k = gram(x, w)
    assert (k[3:]==0).all() and (k[:,3:]==0).all()
    assert torch.autograd.gradcheck(lambda x: (gram(x, w)*c).sum(), (x,))
