"Contextual distillation where nothing is as usual: half precision, one example, one layer, one token, holes in the mask, memory"
import pytest, torch
from torch.utils._python_dispatch import TorchDispatchMode
from fsd.baselines.ckd import ckd_layers, layer_angle, layer_distance, word_angle, word_distance

terms = word_distance, word_angle, layer_distance, layer_angle


def layers(width, n=3, length=7, depth=3, dtype=torch.float32):
    return [torch.randn(n, length, width, dtype=torch.float32).to(dtype) for _ in range(depth)]


def grads(f, s, *args, **kw):
    s = [h.detach().requires_grad_() for h in s]
    loss = f(s, *args, **kw)
    return loss.detach(), torch.stack(torch.autograd.grad(loss, s, allow_unused=False))


@pytest.mark.parametrize('f', terms)
@pytest.mark.parametrize('n', [1, 4])
@pytest.mark.parametrize('length', [1, 2, 30])
@pytest.mark.parametrize('depth', [1, 4])
def test_finite(f, n, length, depth):
    mask = torch.arange(length) < torch.randint(1, length+1, (n, 1))
    for m in (None, mask, mask.long(), mask.float()):
        loss, grad = grads(f, layers(5, n, length, depth), layers(9, n, length, depth), m)
        assert loss.shape == () and loss.isfinite() and loss >= -1e-12 and grad.isfinite().all()


@pytest.mark.parametrize('f', terms)
def test_no_token_at_all(f):
    s, t = layers(5), layers(6)
    mask = torch.ones(3, 7); mask[1] = 0
    loss, grad = grads(f, s, t, mask)
    assert loss.isfinite() and not grad[:, 1].any()
    torch.testing.assert_close(loss, f([h[[0, 2]] for h in s], [h[[0, 2]] for h in t], mask[[0, 2]]))
    loss, grad = grads(f, s, t, mask*0)
    assert loss == 0 and not grad.any()


@pytest.mark.parametrize('f', terms)
@pytest.mark.parametrize('same', [torch.zeros(3, 7, 5), torch.ones(3, 7, 5)])
def test_collapsed(f, same):
    for s, t in (([same]*3, layers(6)), (layers(6), [same]*3), ([same]*3, [same]*3)):
        loss, grad = grads(f, s, t)
        assert loss.isfinite() and grad.isfinite().all()


@pytest.mark.parametrize('f', terms)
def test_padding_of_any_kind(f):
    "On the left, in between and not finite"
    s, t = layers(5, 2, 12), layers(6, 2, 12)
    mask = torch.zeros(2, 12); mask[0, 4:9] = 1; mask[1, 2:12] = 1
    loss, grad = grads(f, s, t, mask)
    bad = [h.masked_fill(mask[..., None] == 0, float('nan')) for h in s]
    again, same = grads(f, bad, [h.masked_fill(mask[..., None] == 0, float('inf')) for h in t], mask)
    torch.testing.assert_close(again, loss); torch.testing.assert_close(same, grad)
    assert not grad[:, mask == 0].any()
    parts = [f([h[i:i+1, a:b] for h in s], [h[i:i+1, a:b] for h in t]) for i, a, b in ((0, 4, 9), (1, 2, 12))]
    n = torch.tensor([5., 10.]); n = n**2 if f is word_distance else n
    torch.testing.assert_close(loss, (torch.stack(parts) * n).sum() / n.sum())
    mask[1, 5] = 0
    hole = [h.clone() for h in s]
    for h in hole: h[1, 5] = 100
    torch.testing.assert_close(f(hole, t, mask), f(s, t, mask))


@pytest.mark.parametrize('f', terms)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(f, dtype):
    s, t = layers(5, dtype=dtype), layers(6, dtype=dtype)
    want = torch.float64 if dtype == torch.float64 else torch.float32
    with torch.autocast('cpu', dtype=torch.bfloat16 if dtype == torch.float64 else dtype): loss, grad = grads(f, s, t)
    assert (loss.dtype, grad.dtype) == (want, dtype)
    plain, grad_plain = grads(f, [h.to(want) for h in s], [h.to(want) for h in t])
    assert torch.equal(loss, plain) and torch.equal(grad, grad_plain.to(dtype))


@pytest.mark.parametrize('f', terms)
def test_gradient(f):
    s, t = layers(3, 2, 4, dtype=torch.float64), layers(4, 2, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    assert torch.autograd.gradcheck(lambda *s: f(list(s), t, mask), [h.requires_grad_() for h in s])


@pytest.mark.parametrize('f', terms)
def test_order_of_layers_and_examples(f):
    s, t = layers(5), layers(6)
    for a, b in ((s[::-1], t[::-1]), ([h.flip(0) for h in s], [h.flip(0) for h in t])): torch.testing.assert_close(f(a, b), f(s, t))
    assert abs(f(s[::-1], t) / f(s, t) - 1) > 1e-3


def test_wide_window_is_no_window():
    "Beyond the sentence on both sides, all words are seen, those at the border more often"
    s, t = layers(5, 1, 3), layers(6, 1, 3)
    count = torch.tensor([[1+4, 1, 1+2], [1+3, 1, 1+3], [1+2, 1, 1+4]], dtype=torch.float64)
    def cosines(h):
        u = torch.nn.functional.normalize(h[0, :, None] - h[0], dim=-1)
        return u @ u.mT
    slow = [(count[:, :, None] * count[:, None] * (cosines(a.double()) - cosines(b.double()))**2).sum() / (3*count[0].sum()**2) for a, b in zip(s, t)]
    got = word_angle(s, t, window=int(count[0].sum()))
    torch.testing.assert_close(got.double(), sum(slow) / 3, rtol=1e-5, atol=0)


class Largest(TorchDispatchMode):
    "Numbers in the largest tensor that any operation makes"
    numel = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(o.untyped_storage().nbytes() // o.element_size() for o in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(o, torch.Tensor))])
        return out


def test_memory():
    "No tensor of all triples, and none of all differences"
    n, length, width, window, depth = 2, 96, 96, 7, 5
    s, t = layers(width, n, length, depth), layers(width, n, length, depth)
    word, layer = n*length*max(length, width, window**2), n*length*depth*max(width, depth**2)
    for f, most, kw in ((word_distance, word, {}), (word_angle, word, dict(window=window)), (layer_distance, layer, {}), (layer_angle, layer, {})):
        for h in s: h.requires_grad_()
        with Largest() as seen: f(s, t, **kw).backward()
        assert most/2 < seen.numel < 3*most, (f.__name__, seen.numel, most)


def test_refusals():
    s, t = layers(5), layers(6)
    for f in terms:
        with pytest.raises(ValueError, match='at least one'): f([], [])
        with pytest.raises(ValueError, match='mask'): f(s, t, torch.ones(3, 6))
        with pytest.raises(ValueError, match='one shape'): f(s, [t[0][..., :5], *t[1:]])
    with pytest.raises(ValueError, match='odd'): word_angle(s, t, window=-1)


@pytest.mark.parametrize('depth_s', range(1, 7))
def test_layers(depth_s):
    pairs = ckd_layers(depth_s, 6)
    assert pairs[0] == (0, 0) and pairs[-1] == (depth_s, 6) and len(pairs) == depth_s + 1
