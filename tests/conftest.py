"""What the tests share: an environment without network or real data, and a tiny random BERT.

Numbers are compared bit by bit, so whatever looks for a device finds the CPU, also where there is a GPU: accelerate,
and `fsd.machine.find_device` with it, are told so. A test that takes the fixture `device` runs on the CPU and, marked
`gpu`, on the accelerator; without one that half is skipped. `pytest tests -m gpu` runs what needs one and nothing else.
"""
import json, os, subprocess, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root)) # the checkout, whatever is installed
for name in ('FSD_GLUE', 'FSD_MODEL', 'FSD_OUTPUTS', 'IN_TEST'): os.environ.pop(name, None)
# one CPU thread, as numbers are compared bit by bit; processes find the checkout too
os.environ |= dict(HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1', ACCELERATE_USE_CPU='1', TOKENIZERS_PARALLELISM='false',
                   PYTHONPATH=os.pathsep.join(filter(None, (str(root), os.environ.get('PYTHONPATH')))))

import pytest, torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

torch.set_num_threads(1)

def build_for_cuda(monkeypatch, gpu:bool):
    "Let torch answer as its build for CUDA, the one that PyPI has for Linux, does on a machine with or without a GPU."
    monkeypatch.delenv('ACCELERATE_USE_CPU')
    def name(device=None):
        if gpu: return 'H100'
        raise RuntimeError('Found no NVIDIA driver on your system')
    def accelerator(check_available=False): return torch.device('cuda') if gpu or not check_available else None
    monkeypatch.setattr('torch.accelerator.current_accelerator', accelerator)
    for what,answer in dict(is_available=lambda: gpu, device_count=lambda: int(gpu), get_device_name=name,
                            max_memory_allocated=lambda device=None: 12345).items(): monkeypatch.setattr(f'torch.cuda.{what}', answer)

@pytest.fixture(params=['cpu', pytest.param('gpu', marks=pytest.mark.gpu)])
def device(request, monkeypatch)->torch.device:
    "The CPU and then the accelerator, which whatever looks for a device finds, too."
    if request.param=='cpu': return torch.device('cpu')
    if not torch.accelerator.is_available(): pytest.skip('there is no GPU')
    monkeypatch.delenv('ACCELERATE_USE_CPU')
    return torch.accelerator.current_accelerator()

def little(layers, seed=0, kind=BertForSequenceClassification, **kw):
    "A random BERT, 16 wide, of 60 words and 16 positions, in eval mode."
    torch.manual_seed(seed)
    usual = dict(vocab_size=60, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32, max_position_embeddings=16)
    return kind(BertConfig(**usual | kw)).eval()

def sentences(n):
    "Rows of 4 to 12 of its tokens."
    g = torch.Generator().manual_seed(n)
    ids = [torch.randint(5, 60, (4+i%9,), generator=g).tolist() for i in range(n)]
    return Dataset.from_dict(dict(input_ids=ids, attention_mask=[[1]*len(i) for i in ids], labels=[sum(i)%2 for i in ids], idx=list(range(n))))

@pytest.fixture(scope='session')
def tiny_bert(tmp_path_factory)->Path:
    "A random BERT of 4 blocks, 16 wide, 64 positions, that spells words out."
    folder = tmp_path_factory.mktemp('models')/'tiny-bert'
    folder.mkdir()
    letters = [chr(c) for c in range(97, 123)]
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *'the a of to and in is was not it he she they . , ?'.split(), *letters, *('##'+c for c in letters)]
    (folder/'vocab.txt').write_text('\n'.join(words))
    BertTokenizerFast(str(folder/'vocab.txt')).save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
                         max_position_embeddings=64)).save_pretrained(folder)
    return folder

@pytest.fixture(scope='session')
def tiny(tiny_bert)->dict:
    "Parameters of a run that takes seconds: 6 steps of the teacher, 12 of the student, a checkpoint every other step."
    return dict(model=str(tiny_bert), data='demo', max_length=32, memory_size=8, train_examples=48, batch_size=8,
                teacher_epochs=1, epochs=2, teacher_lr=1e-3, lr=1e-3, checkpoint_every=2, log_every=1)

@pytest.fixture
def outputs(tmp_path, monkeypatch)->Path:
    "An outputs folder of the test's own."
    monkeypatch.setenv('FSD_OUTPUTS', str(tmp_path/'outputs'))
    return tmp_path/'outputs'

@pytest.fixture
def start():
    "`start(folder, task, method, params)` runs `fsd.distill` in a process of its own; ended with the test if it has not."
    running = []
    def start(folder:Path, task:str, method:str, params:dict, before:str='')->subprocess.Popen:
        code = f"import json, sys\n{before}\nfrom fsd import distill\ndistill(*sys.argv[1:3], **json.loads(sys.argv[3]))"
        p = subprocess.Popen([sys.executable, '-c', code, task, method, json.dumps(params)], env={**os.environ, 'FSD_OUTPUTS': str(folder)},
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        running.append(p)
        return p
    yield start
    for p in running:
        p.kill()
        p.wait()
        p.stdout.close()
