"Guards of the clustering and of the global structure"
import numpy as np, pytest, torch
import torch.nn.functional as F

from fsd.clusters import assign, kmeans, released_memory
from fsd.memory import GlobalStructure, cosine, distance, feature_structure, memory_structure

roads = pytest.mark.parametrize('road', ['gram','streaming'])

@pytest.fixture
def x():
    g = torch.Generator().manual_seed(0)
    return torch.randn(6, 400, generator=g)[torch.arange(120)%6] + .7*torch.randn(120, 400, generator=g)

class View:
    "Rows computed when asked for, in half precision; remembers the longest slice"
    def __init__(self, x): self.x,self.shape,self.longest = x,tuple(x.shape),0
    def __getitem__(self, i):
        rows = self.x[i]
        self.longest = max(self.longest, len(rows))
        return rows.half()

@roads
def test_means_and_inertia(x, road):
    c = kmeans(x, 9, road=road)
    want = torch.stack([x[c.assignment==i].mean(0) for i in range(9)])
    torch.testing.assert_close(c.centroids, want, atol=1e-5, rtol=1e-5)
    assert c.inertia == pytest.approx(float((x-want[c.assignment]).square().sum()), rel=1e-5)
    assert c.counts.min() > 0 and c.counts.sum() == len(x)

@roads
@pytest.mark.parametrize('kind', [torch.float64, torch.bfloat16, np.float16, np.float32])
def test_any_floats(x, road, kind):
    y = x.to(kind) if isinstance(kind, torch.dtype) else x.numpy().astype(kind)
    assert kmeans(y, 6, road=road).counts.tolist() == [20]*6

@roads
def test_seeded(x, road):
    a,b = (kmeans(x, 7, seed=3, restarts=2, road=road) for _ in range(2))
    assert torch.equal(a.centroids, b.centroids) and torch.equal(a.assignment, b.assignment) and a.inertia == b.inertia

@roads
def test_budget(x, road):
    view = View(x)
    budget = 30*400*8 + 8*120**2
    c = kmeans(view, 6, budget=budget, road=road)
    assert view.longest*400*6 < budget # the rows as they come and in float32
    assert c.counts.tolist() == [20]*6

@roads
def test_offset(x, road):
    a,b = kmeans(x, 6, road=road), kmeans(x+300, 6, road=road)
    assert torch.equal(a.counts.sort().values, b.counts.sort().values) and b.inertia == pytest.approx(a.inertia, rel=1e-3)

@roads
def test_duplicates(road):
    x = torch.tensor([[1.,2,3]]*5 + [[4.,5,6]]*5)
    c = kmeans(x, 4, road=road)
    assert (c.counts > 0).all() and c.inertia == pytest.approx(0, abs=1e-4)
    assert kmeans(x, 10, road=road).counts.tolist() == [1]*10
    assert kmeans(torch.zeros(4, 3), 2, road=road).inertia == 0

@roads
def test_one_cluster_and_one_each(x, road):
    assert kmeans(x, 1, road=road).inertia == pytest.approx(float((x-x.mean(0)).square().sum()), rel=1e-5)
    c = kmeans(x[:10], 10, road=road)
    torch.testing.assert_close(c.centroids[c.assignment], x[:10])

def test_large_goes_streaming(x):
    assert 'Gram' in kmeans(x, 3).how and 'projection' in kmeans(x, 3, budget=8*120**2).how

@pytest.mark.parametrize('k', [0, 121, -1])
def test_bad_k(x, k):
    with pytest.raises(ValueError, match='between 1 and the number of examples, 120'): kmeans(x, k)

@roads
def test_bad_input(x, road):
    x[77,5] = float('nan')
    with pytest.raises(ValueError, match='not finite'): kmeans(x, 3, road=road)
    with pytest.raises(ValueError, match='too small'): kmeans(x, 3, budget=1000, road=road)

@roads
@pytest.mark.parametrize('n,p,k', [(40,30,5), (40,30,40), (200,10,3), (30,2000,2)])
def test_least_budget(road, n, p, k):
    x = torch.randn(n, p, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match='at least') as e: kmeans(x, k, budget=1, road=road)
    least = float(str(e.value).split()[-1])
    assert kmeans(x, k, budget=least*1.01, road=road, restarts=1).counts.min() > 0

def test_bad_road(x):
    with pytest.raises(ValueError, match="'faster'"): kmeans(x, 3, road='faster')

def test_assign(x):
    c = x[:5]
    a,inertia = assign(x, c, budget=50_000)
    d = torch.cdist(x, c)
    assert torch.equal(a, d.argmin(1)) and inertia == pytest.approx(float(d.min(1).values.square().sum()), rel=1e-5)

def test_released_by_hand(x):
    y = x[:5]
    test = released_memory(y, 1, batch_size=2).centroids[0] # pairs are averaged with weights 1/2, 2/3, then the next pair
    m = torch.zeros(400)
    for rows in (y[:2], y[2:4], y[4:]):
        for count,row in enumerate(rows): m = ((count+1)*m + row)/(count+2)
    torch.testing.assert_close(test, m)

def test_released(x):
    c = released_memory(x+5, 30)
    assert torch.equal((c.centroids==0).all(1), c.counts==0) and (c.counts==0).any()
    assert torch.equal(c.centroids, released_memory(x+5, 30).centroids)
    assert torch.equal(released_memory(x, 4, passes=4).centroids, released_memory(x, 4, passes=3).centroids)
    with pytest.raises(ValueError, match='at least 3'): released_memory(x, 3, passes=2)

def features(n=5, k=12, l=7, d_t=10, d_s=6, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g, dtype=dtype)
    return r(k, l, d_t), r(n, l, d_s), r(n, l, d_t)

def direct(module, m_t, h_s, h_t):
    return (memory_structure(module.memory_s, m_t, module.reduction, module.debiased)
        + module.gamma_m*feature_structure(h_s, h_t, module.memory_s, m_t, distance)
        + (1-module.gamma_m)*feature_structure(h_s, h_t, module.memory_s, m_t, cosine))

@pytest.mark.parametrize('gamma_m', [0, .3, 1])
@pytest.mark.parametrize('reduction', ['log_of_mean','one_minus'])
@pytest.mark.parametrize('debiased', [False, True])
def test_equation_10(gamma_m, reduction, debiased):
    m_t,h_s,h_t = features(dtype=torch.float64)
    h_s.requires_grad_()
    g = GlobalStructure(m_t, 6, gamma_m, reduction, debiased).double()
    a,b = g(h_s, h_t), direct(g, m_t, h_s, h_t)
    torch.testing.assert_close(a, b)
    for p,q in zip(*(torch.autograd.grad(o, (h_s, g.memory_s)) for o in (a, b))): torch.testing.assert_close(p, q, atol=1e-9, rtol=1e-6)

def test_gradcheck():
    m_t,h_s,h_t = features(dtype=torch.float64)
    g = GlobalStructure(m_t, 6).double()
    torch.autograd.gradcheck(lambda h: g(h, h_t), h_s.requires_grad_())
    torch.autograd.gradcheck(lambda m: torch.func.functional_call(g, {'memory_s': m}, (h_s.detach(), h_t)), g.memory_s)

@pytest.mark.parametrize('gamma_m', [0, 1])
def test_precision(gamma_m):
    m_t,h_s,h_t = features(n=8, k=30, l=4, d_t=500, d_s=500)
    mu = 50*torch.randn(4, 500, generator=torch.Generator().manual_seed(1))
    m_t,h_s,h_t = m_t+mu, (h_s+mu).requires_grad_(), h_t+mu
    g = GlobalStructure(m_t, gamma_m=gamma_m)
    g.memory_s.data += mu
    a = torch.autograd.grad(g(h_s, h_t), (h_s, g.memory_s))
    h_d = h_s.detach().double().requires_grad_()
    b = torch.autograd.grad(direct(g.double(), m_t.double(), h_d, h_t.double()), (h_d, g.memory_s))
    for p,q in zip(a, b): assert (p-q).norm() < 1e-4*q.norm()

def test_mask_and_length():
    m_t,h_s,h_t = features()
    g = GlobalStructure(m_t, 6)
    mask = torch.ones(5, 7, dtype=torch.long)
    mask[:,4:] = 0
    assert torch.equal(g(h_s, h_t, mask), g(h_s[:,:4], h_t[:,:4]))
    noisy = h_s.masked_fill(mask[...,None]==0, float('nan'))
    assert torch.equal(g(noisy, h_t, mask), g(h_s, h_t, mask))
    with pytest.raises(ValueError, match='8 positions, more than the memory'): g(F.pad(h_s, (0,0,0,1)), F.pad(h_t, (0,0,0,1)))

def test_zeros_and_coincidence():
    m_t,h_s,h_t = features(d_s=10)
    m_t[3] = 0
    h_t[0],h_t[1] = m_t[2],0
    h_s.data[1] = 0
    g = GlobalStructure(m_t)
    g.memory_s.data[5] = h_s[2]
    h_s.requires_grad_()
    loss = g(h_s, h_t)
    loss.backward()
    torch.testing.assert_close(loss, direct(g, m_t, h_s, h_t), atol=1e-4, rtol=1e-4)
    assert h_s.grad.isfinite().all() and g.memory_s.grad.isfinite().all()
    for m in (torch.zeros_like(m_t), m_t[:2]):
        g = GlobalStructure(m)
        g(h_s, h_t).backward()
        assert g.memory_s.grad.isfinite().all()

def test_autocast_and_half():
    m_t,h_s,h_t = features()
    g = GlobalStructure(m_t, 6)
    want = g(h_s, h_t)
    with torch.autocast('cpu', torch.bfloat16): got = g(h_s, h_t)
    assert torch.equal(got, want)
    torch.testing.assert_close(g(h_s.bfloat16(), h_t.half()), want, atol=1e-2, rtol=1e-2)

def test_module():
    m_t,h_s,h_t = features()
    g = GlobalStructure(m_t, 6)
    assert list(g.state_dict()) == ['memory_s'] and g.memory_s.shape == (12, 7, 6)
    assert torch.equal(g.memory_s, GlobalStructure(m_t, 6).memory_s) and not torch.equal(g.memory_s, GlobalStructure(m_t, 6, seed=1).memory_s)
    assert GlobalStructure(m_t).memory_s.shape == m_t.shape
    assert g(h_s, h_t).item() == pytest.approx(sum(g.weights[k]*v.item() for k,v in g.terms(h_s, h_t).items()))

@pytest.mark.parametrize('gamma_m', [-.1, 1.1, float('nan')])
def test_bad_gamma(gamma_m):
    with pytest.raises(ValueError, match='between 0 and 1'): GlobalStructure(torch.randn(3, 2, 4), gamma_m=gamma_m)

def test_bad_shapes():
    m_t,h_s,h_t = features()
    with pytest.raises(ValueError, match='shape'): GlobalStructure(m_t.flatten(1))
    with pytest.raises(ValueError, match='must be 6 wide'): GlobalStructure(m_t, 6)(h_t, h_t)

@roads
@pytest.mark.parametrize('row', [1e19, -1e19, float('inf'), float('nan')])
def test_rows_whose_squares_do_not_fit(road, row):
    x = torch.randn(40, 8); x[7] = row
    with pytest.raises(ValueError, match='not finite'): kmeans(x, 3, road=road)
    with pytest.raises(ValueError, match='not finite'): assign(x, torch.randn(3, 8))
    with pytest.raises(ValueError, match='not finite'): assign(torch.randn(3, 8), x)

@roads
def test_features_too_small_for_squares(road):
    with pytest.raises(ValueError, match='too far from 1'): kmeans(1e-25*torch.randn(40, 8), 3, road=road)
    assert kmeans(1e-10*torch.randn(40, 8), 3, road=road).inertia > 0

def test_three_centroids_have_no_debiased_structure():
    with pytest.raises(ValueError, match='at least 4 if debiased, not 3'): GlobalStructure(torch.randn(3, 2, 4), debiased=True)

@pytest.mark.parametrize('debiased', [False, True])
def test_a_constant_memory_has_no_structure_and_no_gradient(debiased):
    m_t,h_s,h_t = features()
    g = GlobalStructure(m_t, 6, debiased=debiased)
    g.memory_s.data.fill_(.1)
    loss = g.terms(h_s, h_t)['memory']
    torch.testing.assert_close(loss, memory_structure(g.memory_s, m_t, debiased=debiased))
    assert not torch.autograd.grad(loss, g.memory_s)[0].any()
