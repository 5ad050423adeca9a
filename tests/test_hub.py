"""The hub, spoken to: a model, GLUE and data of one's own are read by name and a student is pushed; what fails is said in a sentence."""
import json, os, shutil, subprocess, sys
from pathlib import Path
import pandas as pd, pytest
from huggingface_hub import metadata_load
from hub import serving
from fsd.glue import load
from fsd.own import example

configs = '---\nconfigs:\n- config_name: wnli\n  data_files:\n  - split: train\n    path: wnli/train-*\n  - split: validation\n    path: wnli/validation-*\n---\n'

@pytest.fixture(scope='module')
def root(tiny_bert, tmp_path_factory):
    "Repositories: a tiny BERT under several names, made-up rows in the place of GLUE's, and the example of one's own data."
    root = tmp_path_factory.mktemp('hub')
    for name in ('tiny','broken','missing','private','closed'):
        shutil.copytree(tiny_bert, root/'models'/'me'/name)
        (root/'models'/'me'/name/'README.md').write_text('---\nlicense: mit\nlanguage: en\n---\n# Tiny')
    (root/'models/me/missing/model.safetensors').unlink()
    glue,own = root/'datasets/nyu-mll/glue',root/'datasets/me/reviews'
    for folder in (glue/'wnli', own): folder.mkdir(parents=True)
    for s,ds in load('wnli', 'demo').splits.items(): ds.to_parquet(glue/'wnli'/f'{s}-00000-of-00001.parquet')
    (glue/'README.md').write_text(configs)
    pd.read_csv(example).to_parquet(own/'train-00000-of-00001.parquet')
    (own/'README.md').write_text('---\nlicense: mit\n---\n')
    return root

def told(code, endpoint, folder):
    "What `code`, run where the hub is at `endpoint` and nothing is cached in `folder`, says on a line of JSON."
    own = dict(HF_ENDPOINT=endpoint, HF_HOME=str(folder/'cache'), FSD_OUTPUTS=str(folder/'outputs'), HF_HUB_DISABLE_XET='1', HF_HUB_DISABLE_TELEMETRY='1',
               HF_HUB_DISABLE_PROGRESS_BARS='1', NO_PROXY='127.0.0.1', no_proxy='127.0.0.1')
    env = {k:v for k,v in os.environ.items() if k not in ('HF_HUB_OFFLINE','HF_TOKEN')} | own
    done = subprocess.run([sys.executable, '-c', before+code], env=env, capture_output=True, text=True)
    assert done.returncode==0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])

before = '''
import json, time
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1000 # bytes that come before a connection ends reach the disk in such pieces
sleep,found = time.sleep,{}
time.sleep = lambda s: sleep(min(s, .01)) # between two tries
def tell(name, f, *args):
    try: found[name] = str(f(*args))
    except Exception as e: found[name] = f'{type(e).__name__}: {e}'
from fsd.models import find_model
from fsd.glue import load
'''

def test_a_hub_is_read_and_written(root, tmp_path):
    code = '''
import fsd
from transformers import pipeline
from fsd.own import own_data
tiny = dict(max_length=32, teacher_epochs=1, epochs=1, teacher_lr=1e-3, lr=1e-3)
run = fsd.distill('wnli', 'vkd', model='me/tiny', data='hub', **tiny)
exp = fsd.Experiment('wnli', 'vkd', model='me/tiny', data='hub', **tiny)
found |= dict(kind=run.kind, data=run.record['data']['where'], card=(exp.student_folder/'README.md').read_text())
data = own_data('me/reviews', share=.2)
found['own'] = [data.where, *map(len, data.splits.values())]
args = fsd.DistillationConfig(exp.outputs/'pushed', use_cpu=True, max_length=32, hub_model_id='me/student', hub_token='bad', disable_tqdm=True)
trainer = fsd.DistillationTrainer(exp.new_student(), exp.teacher, args, 'rkd', train_dataset=exp.rows['train'], processing_class=exp.tokenizer)
tell('refused', trainer.push_to_hub)
args.hub_token = 'good'
tell('pushed', trainer.push_to_hub)
found['answer'] = pipeline('text-classification', 'me/student', device='cpu')(dict(text='it is a', text_pair='it is not'))
print(json.dumps(found))
'''
    with serving(root) as hub: found = told(code, hub.endpoint, tmp_path)
    assert (found['kind'],found['data'])==('runs', 'WNLI from nyu-mll/glue of the Hugging Face hub')
    assert found['own']==['mine from me/reviews of the Hugging Face hub', 256, 64]
    (tmp_path/'card.md').write_text(found['card'])
    head = metadata_load(tmp_path/'card.md')
    assert [head[k] for k in ('base_model','license','language','datasets','metrics')]==['me/tiny', 'mit', 'en', ['nyu-mll/glue'], ['accuracy']]
    dataset = head['model-index'][0]['results'][0]['dataset']
    assert (dataset['type'],dataset['config'],dataset['split'])==('nyu-mll/glue', 'wnli', 'validation')
    assert found['refused'].startswith('ConnectionError: me/student was not pushed to the Hugging Face hub: it refuses your token') and '(403)' in found['refused']
    assert '\n' not in found['refused'] and '/me/student/commit/' in found['pushed']
    assert found['answer']['label'] in ('entailment','not_entailment')
    pushed = root/'models/me/student'
    assert {'README.md','config.json','model.safetensors','tokenizer.json'}<={p.name for p in pushed.iterdir()}
    head = metadata_load(pushed/'README.md')
    assert head['base_model']=='me/tiny' and head['tags'][:2]==['fsd','knowledge-distillation']

def test_what_a_hub_refuses_is_said_in_a_sentence_and_a_second_try_goes_on(root, tmp_path):
    code = '''
for n in ('missing','private','closed','nothing'): tell(n, find_model, f'me/{n}')
tell('broken', find_model, 'me/broken')
tell('again', find_model, 'me/broken')
tell('task', load, 'rte', 'hub')
print(json.dumps(found))
'''
    # a try is repeated five times, once for safetensors alone and once for pickles too
    with serving(root, breaks=12) as hub: found = told(code, hub.endpoint, tmp_path)
    says = dict(missing='it has no model.safetensors or pytorch_model.bin', private='it refuses your token, or that there is none (401)',
                closed='it refuses your token, or that there is none (403)', nothing='it has nothing of this name', broken='the connection broke off')
    for name,words in says.items():
        assert found[name].startswith(f"FileNotFoundError: 'me/{name}' is no folder") and words in found[name] and '\n' not in found[name], found[name]
    assert found['task'].startswith("ConnectionError: nyu-mll/glue (rte) cannot be had from the Hugging Face hub: ")
    assert 'models--me--broken' in found['again']
    asked = [(path.rpartition('/')[2],start) for kind,path,start in hub.asked if kind=='GET' and '/me/broken/resolve/' in path]
    assert [name for name,_ in asked].count('tokenizer.json')==1, 'what came whole is not asked for again'
    resumed = [start for name,start in asked if name=='model.safetensors' and start]
    assert len(resumed)==10 and len(set(resumed))==1 and resumed[0]!='bytes=0-', 'a repeated try goes on in the file'
    size = (root/'models/me/broken/model.safetensors').stat().st_size
    assert (Path(found['again'])/'model.safetensors').stat().st_size==size

def test_no_answer_is_said_at_once(tmp_path):
    code = "tell('model', find_model, 'me/tiny')\ntell('task', load, 'wnli', 'hub')\ntell('auto', load, 'wnli')\nprint(json.dumps(found))"
    found = told(code, 'http://127.0.0.1:9', tmp_path)
    assert found['model']=="FileNotFoundError: 'me/tiny' is no folder and is not in the local cache, and the hub cannot be reached; 'offline' is a small BERT that needs none"
    assert found['task'].startswith('ConnectionError: nyu-mll/glue is not cached and http://127.0.0.1:9 is out of reach')
    assert "source='demo'" in found['auto']
