"""The project as a whole: library and notebooks agree, nothing of one machine is in them, and the wheel works by itself."""
import ast, configparser, doctest, importlib, inspect, os, re, shutil, site, subprocess, sys, venv, zipfile
from graphlib import CycleError, TopologicalSorter
import nbformat, pytest
from conftest import root
import fsd
from fsd.models import packaged

notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
modules = sorted(p.relative_to(root/'fsd') for p in (root/'fsd').rglob('*.py') if p.stem not in ('__init__','_modidx'))
cells = {p.stem: nbformat.read(p, 4).cells for p in notebooks}
commands = [n for n,cs in cells.items() if f'papermill nbs/{n}.ipynb' in cs[0].source]

def run(*args, **kw): return subprocess.run([str(a) for a in args], capture_output=True, text=True, **kw)

@pytest.fixture(scope='module')
def tracked():
    "Files that belong to the project, as git sees it."
    done = run('git', 'ls-files', '-z', cwd=root)
    if done.returncode: pytest.skip('not a git checkout')
    return [f for f in done.stdout.split('\0') if (root/f).is_file()]

@pytest.fixture
def copy(tracked, tmp_path):
    "The tracked files as they are in the working tree."
    for f in tracked:
        (tmp_path/'copy'/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root/f, tmp_path/'copy'/f)
    return tmp_path/'copy'

# ---------------------------------------------------------------- notebooks and library

def nbdev(command, folder):
    done = run(sys.executable, '-c', f'from nbdev.clean import nbdev_clean\nfrom nbdev.doclinks import nbdev_export\n{command}()', cwd=folder)
    assert done.returncode==0, done.stderr

def contents(folder, pattern): return {str(p): p.read_bytes() for p in folder.rglob(pattern) if p.suffix in ('.ipynb', '.py')}

def test_library_and_notebooks_are_fresh(copy):
    nbs,library = contents(copy/'nbs', '*'),contents(copy/'fsd', '*')
    nbdev('nbdev_clean', copy)
    assert [n for n,b in contents(copy/'nbs', '*').items() if b!=nbs[n]]==[], 'run nbdev-clean'
    nbdev('nbdev_export', copy)
    assert [n for n,b in contents(copy/'fsd', '*').items() if b!=library.get(n)]==[], 'run nbdev-export'

@pytest.mark.parametrize('name', cells)
def test_the_first_cell_is_title_and_subtitle(name):
    first = cells[name][0]
    assert first.cell_type=='markdown' and re.match(r'# \S.*\n+> \S', first.source)

@pytest.mark.parametrize('name', cells)
def test_a_notebook_that_exports_says_once_where_to(name):
    code = [c.source for c in cells[name] if c.cell_type=='code']
    exports,where = any(re.search(r'^#\| *export', s, re.M) for s in code),re.findall(r'^#\| *default_exp +(\S+)', '\n'.join(code), re.M)
    assert len(where)==(1 if exports else 0)
    if exports: assert (root/'fsd'/where[0].replace('.', '/')).with_suffix('.py').exists()

def test_every_module_has_one_notebook():
    where = re.findall(r'default_exp +([\w.]+)', '\n'.join(c.source for n in cells.values() for c in n if c.cell_type=='code'))
    assert sorted(where)==sorted('.'.join(p.with_suffix('').parts) for p in modules)

def test_a_chapter_that_registers_terms_gives_the_package_its_own_back():
    "Several are tested in one process."
    code = {n: [c.source for c in cs if c.cell_type=='code'] for n,cs in cells.items()}
    registers = re.compile(r'\b(terms|methods|schedules)(\[.+?\] = | \|= )')
    those = {n for n,ss in code.items() if any(s.startswith('#| export') and registers.search(s) for s in ss)}
    both = {n for n,ss in code.items() if 'give_back = as_registered()' in ss[1] and ss[-1].endswith('give_back()')}
    assert those==both and '08_methods' in those

@pytest.mark.parametrize('name', commands)
def test_commands_have_one_cell_of_parameters(name):
    assert 'distill' in commands and sum('parameters' in c.metadata.get('tags', []) for c in cells[name])==1

def test_outputs_show_no_error():
    assert [n for n,cs in cells.items() for c in cs for o in c.get('outputs', []) if o.output_type=='error']==[]

# ---------------------------------------------------------------- what must not be there

def test_nothing_is_unpickled():
    bad = re.compile(r'\bpickle\.(?!UnpicklingError)|\bjoblib\b|\bdill\b|torch\.load\((?!.*weights_only=True)|allow_pickle=True|weights_only=False|trust_remote_code')
    assert [f'{p.name}: {l}' for p in modules for l in (root/'fsd'/p).read_text().splitlines() if bad.search(l)]==[]

def test_no_path_of_one_machine(tracked):
    bad = re.compile(r'(?<![\w.:/])/(work|root|home|Users)/\w+')
    ours = [f for f in tracked if f.startswith(('nbs/', 'fsd/', 'outputs/')) or f in ('README.md', 'settings.ini', 'pyproject.toml')]
    texts = {f: (root/f).read_bytes().decode(errors='replace') for f in ours if not f.endswith(('.npz', '.png'))}
    assert [f'{f}: {m[0]}' for f,t in texts.items() for m in bad.finditer(t)]==[]

def test_every_setting_says_where_it_comes_from():
    lines = [l for l in (root/'settings.ini').read_text().splitlines() if re.match(r'\w+ *=', l)]
    assert [l for l in lines if not re.search(r'#.*\b(paper|released|ours)\b', l)]==[]
    ini = configparser.ConfigParser(inline_comment_prefixes='#')
    ini.read(root/'settings.ini')
    assert len(lines)==len(ini.defaults()) + sum(len(ini._sections[s]) for s in ini.sections()), 'no value escapes the pattern'

# ---------------------------------------------------------------- how the library is built

def name_of(p): return '.'.join(('fsd', *p.with_suffix('').parts))
sources = {name_of(p): (root/'fsd'/p).read_text() for p in modules}

def taken(name):
    "(module, name or None) of all that the module `name` imports from `fsd`, at its top or inside of its functions."
    for node in ast.walk(ast.parse(sources[name])):
        if isinstance(node, ast.Import): yield from ((a.name, None) for a in node.names if a.name in sources)
        if not isinstance(node, ast.ImportFrom): continue
        base = '.'.join([*name.split('.')[:-node.level], *filter(None, [node.module])]) if node.level else node.module
        for a in node.names:
            if f'{base}.{a.name}' in sources: yield f'{base}.{a.name}', None
            elif base in sources: yield base, a.name

@pytest.mark.parametrize('name', sources)
def test_examples_in_docstrings_are_true(name):
    if name in ('fsd.experiment', 'fsd.reading') and not packaged(): pytest.skip('needs weights')
    done = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE|doctest.ELLIPSIS)
    assert done.failed==0, f'{done.failed} of {done.attempted} examples'

@pytest.mark.parametrize('name', sorted({*fsd._face}-{'NonFinite', 'distill', 'KeptTeacher'}))
def test_help_shows_an_example(name):
    "Of what `fsd` offers, but for an error, what takes minutes, and what another's example makes."
    assert '>>>' in inspect.getdoc(getattr(fsd, name))

def test_modules_import_one_another_in_no_circle():
    try: TopologicalSorter({n: {m for m,_ in taken(n)} for n in sources}).prepare()
    except CycleError as e: pytest.fail(' -> '.join(e.args[1]))

def test_no_module_takes_a_private_name_of_another():
    assert [f'{n}: {m}.{a}' for n in sources for m,a in taken(n) if a and a.startswith('_')]==[]

def test_no_module_is_longer_than_400_lines():
    assert {n:k for n,s in sources.items() if (k := len(s.splitlines()))>400}=={}

def test_lines_end_before_column_120_but_for_one_in_a_hundred():
    lines = [l for s in sources.values() for l in s.splitlines() if l.strip() and not l.startswith(('#', '__all__'))]
    long = [l for l in lines if len(l)>120]
    assert len(long)<=.01*len(lines), f'{len(long)} of {len(lines)}'

@pytest.mark.parametrize('name', cells)
def test_an_exported_cell_has_at_most_50_lines(name):
    exported = [c.source for c in cells[name] if c.cell_type=='code' and re.search(r'^#\| *exports?\b', c.source, re.M)]
    assert [s.splitlines()[:3] for s in exported if len([l for l in s.splitlines() if not l.startswith('#|')])>50]==[]

def test_tables_and_figures_are_made_without_transformers():
    from_records = ['fsd.report', *(n for n in sources if n.startswith(('fsd.tables.', 'fsd.figures.')))]
    code = f"""import importlib, sys
for name in {from_records}: importlib.import_module(name)
bad = {{'transformers', 'accelerate', 'fsd.trainer', 'fsd.experiment'}} & set(sys.modules)
assert not bad, bad"""
    done = run(sys.executable, '-c', code)
    assert done.returncode==0, done.stderr

# ---------------------------------------------------------------- the package

def test_import_is_cheap():
    code = "import sys, fsd; fsd.resolve('rte', 'fsd'); dir(fsd); bad = {'torch', 'transformers', 'datasets', 'sklearn', 'pandas'} & set(sys.modules); assert not bad, bad"
    done = run(sys.executable, '-c', code)
    assert done.returncode==0, done.stderr

def test_the_public_names_are_there():
    for name in (*fsd._face, *fsd._modules()): assert getattr(fsd, name) is not None and name in dir(fsd)
    assert {p.with_suffix('').parts[0] for p in modules}-{'__main__'}==set(fsd._modules())
    with pytest.raises(AttributeError, match="no attribute 'distil'"): fsd.distil

def build_wheel(source, folder):
    done = run(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--wheel-dir', folder, source)
    if re.search(r'No matching distribution found for hatchling|Failed to establish a new connection|Network is unreachable', done.stdout+done.stderr):
        pytest.skip('building needs hatchling, and the package index cannot be reached')
    assert done.returncode==0, done.stderr
    return next(folder.glob('fsd-*.whl'))

installed = '''
import sys
from pathlib import Path
import fsd
from fsd.values import settings_file
package = Path(fsd.__file__).parent
assert package.is_relative_to(sys.prefix), package
assert settings_file()==package/'settings.ini'
assert fsd.resolve('qqp', 'fsd').memory_size==300
from fsd import kept, paper
assert kept.outputs()==Path.cwd()/'outputs'
assert paper.beside_paper('rte', {}).notna().any(axis=None)
fsd.Experiment
print(fsd.__version__)
'''

def test_the_wheel_works_outside_the_checkout(copy, tmp_path):
    wheel = build_wheel(copy, tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    assert {'fsd/settings.ini', 'fsd/paper_tables.json', 'fsd/data/reviews.csv', 'fsd/experiment.py'} <= set(names)
    assert {n.split('/')[0] for n in names}=={'fsd', f'fsd-{fsd.__version__}.dist-info'}
    venv.create(tmp_path/'venv', with_pip=False, symlinks=os.name!='nt')
    python = next(p for p in (tmp_path/'venv/bin/python', tmp_path/'venv/Scripts/python.exe') if p.exists())
    own = run(python, '-c', "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    done = run(sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index', '--target', own, wheel)
    assert done.returncode==0, done.stderr
    with open(f'{own}/dependencies.pth', 'w') as f: f.write('\n'.join(site.getsitepackages()))
    (tmp_path/'elsewhere').mkdir()
    done = run(python, '-c', installed, cwd=tmp_path/'elsewhere', env={k:v for k,v in os.environ.items() if k!='PYTHONPATH'})
    assert done.returncode==0 and done.stdout.strip()==fsd.__version__, done.stderr
