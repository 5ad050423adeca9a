"MiniLM in every precision and under every mask"
import pytest, torch
import torch.nn.functional as F
from fsd.baselines.minilm import attention_relation, minilm, minilm_v2, relation, split_heads, value_relation
from fsd.passes import attention


def plain(x_s, x_t, mask, heads):
    "All examples at once, left to autograd."
    def logs(x):
        x = split_heads(x, heads)
        return (x @ x.mT * x.shape[-1]**-.5).masked_fill(~mask[:, None, None], -1e30).log_softmax(-1)
    kl = F.kl_div(logs(x_s), logs(x_t), reduction='none', log_target=True).sum(-1) * mask[:, None]
    return (kl.sum((1, 2)) / mask.sum(1)).mean() / heads


@pytest.mark.parametrize('heads', [1, 2, 3, 4, 12, 24])
def test_any_mask_and_any_heads(heads):
    torch.manual_seed(heads)
    s, t = torch.randn(7, 3, 9, 8, requires_grad=True), torch.randn(7, 4, 9, 12)
    s64 = s.detach().double().requires_grad_()
    mask = torch.rand(7, 9) < .6
    mask[:, 4] = True
    value, exact = relation(s, t, mask, heads), plain(s64, t.double(), mask, heads)
    (3 * value).backward(); (3 * exact).backward()
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=0)
    assert (s.grad - s64.grad).norm() < 1e-5 * s64.grad.norm()
    assert len({relation(s, t, m, heads).item() for m in (mask, mask.long(), mask.float())}) == 1
    assert relation(s, t, None, heads) == relation(s, t, torch.ones(7, 9), heads)


def test_gradient_by_differences():
    s, t = torch.randn(3, 2, 5, 4, dtype=torch.float64, requires_grad=True), torch.randn(3, 2, 5, 6, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    assert torch.autograd.gradcheck(lambda x: relation(x, t, mask, 4), s)
    assert torch.autograd.gradcheck(lambda x: attention_relation(x.softmax(-1), torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)).double().softmax(-1), mask),
                                    torch.randn(3, 2, 5, 5, dtype=torch.float64, requires_grad=True))
    with pytest.raises(RuntimeError, match='once_differentiable'):
        torch.autograd.grad(relation(s, t).square(), s, create_graph=True)[0].sum().backward()
    with torch.no_grad(): assert relation(s, t, mask) > 0


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
def test_precision(dtype):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 3, 6, 8).to(dtype)
    for x in (q, k, v): x.requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    a = [attention(*o, mask) for o in zip(q, k)]
    for value in (minilm(*a, *v, mask), minilm_v2(*q, *k, *v, mask, heads=6)):
        grads = torch.autograd.grad(value, (q, k, v), allow_unused=True, retain_graph=True)
        assert value.isfinite() and all(g.isfinite().all() and g[0].any() and not g[1].any() and g.dtype == dtype for g in grads)
        for g in grads: assert not g[0].movedim(1, 2)[~mask].any()
    assert value_relation(*v, mask).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(value.double(), minilm_v2(*q.double(), *k.double(), *v.double(), mask, heads=6), rtol=1e-5, atol=0)
    with torch.autocast('cpu', dtype=torch.bfloat16): assert minilm_v2(*q, *k, *v, mask, heads=6) == value


def test_large_scores_stay_finite():
    v = (300 * torch.randn(2, 4, 3, 6, 8)).requires_grad_()
    mask = torch.ones(4, 6).bool()
    for loss in (value_relation(*v, mask), attention_relation(*(attention(x, x, mask) for x in v), mask)):
        g, = torch.autograd.grad(loss, v)
        assert loss.isfinite() and loss > 0 and g.isfinite().all()


def test_bad_numbers_are_not_hidden():
    v_s, v_t = torch.randn(2, 4, 3, 6, 8)
    for bad in (float('nan'), float('inf')):
        broken = v_s.clone(); broken[0, 0, 0, 0] = bad
        assert not value_relation(broken, v_t).isfinite() and not value_relation(v_t, broken).isfinite()
    a = v_s @ v_t.mT
    a = a.softmax(-1); broken = a.clone(); broken[0, 0, 0, 0] = float('nan')
    assert attention_relation(broken, a).isnan() and attention_relation(a, broken).isnan()
