"""Feature structure distillation of BERT with centered kernel alignment"""

__version__ = "0.1.0"

import importlib, pkgutil

# name -> module: what `fsd.name` means; modules and what they need are loaded when first used
_face = {name:module for module,names in {
    'cka': 'linear_cka minibatch_cka gram hsic center',
    'losses': 'ce kd mse_logits intra local similarity_loss',
    'memory': 'GlobalStructure',
    'clusters': 'kmeans released_memory',
    'settings': 'Knobs Settings resolve from_released to_released',
    'given': 'DistillationConfig',
    'trainer': 'DistillationTrainer',
    'job': 'NonFinite',
    'features': 'KeptTeacher LiveTeacher keep_features',
    'words': 'OtherWords',
    'models': 'load_teacher',
    'blocks': 'cut lower_half',
    'passes': 'Features',
    'terms': 'Method Term',
    'methods': 'Objective find_method',
    'wid': 'Inheritance compact merge',
    'squad': 'squad_scores',
    'reading': 'Reading',
    'own': 'own_data',
    'families': 'try_encoder',
    'experiment': 'Experiment distill',
    'export': 'to_onnx',
}.items() for name in names.split()}

def __getattr__(name):
    if name in _face: return getattr(importlib.import_module(f'fsd.{_face[name]}'), name)
    if name in _modules(): return importlib.import_module(f'fsd.{name}')
    raise AttributeError(f"module 'fsd' has no attribute {name!r}")

def _modules(): return [m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith('_')]

def __dir__(): return sorted([*globals(), *_face, *_modules()])
