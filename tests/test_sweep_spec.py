"Sweep files: W&B's engine as the judge, forms that public repositories hold, our own additions, `explain`."
import json
import math
import re
from pathlib import Path

import jsonschema
import pytest

from mlstack.sweeps import Hyperband, SpecError, Sweep, quantile, read_spec
from mlstack.sweeps.commands import expand, surprises
from mlstack.sweeps.distributions import distributions, param
from mlstack.sweeps.outline import outline
from mlstack.sweeps.spec import schema

ORACLE = json.loads((Path(__file__).parent/'data'/'sweeps-oracle.json').read_text())


# W&B's engine

def test_a_dense_grid_of_all_eighteen_equals_the_engine():
    assert {param(spec)['distribution'] for spec,_ in ORACLE['dense']} == set(distributions) and len(distributions)==18
    for spec,values in ORACLE['dense']:
        p = param(spec)
        for u,want in zip(ORACLE['places'], values, strict=True):
            got = quantile(p, u)
            if isinstance(want, float): assert isinstance(got, float) and math.isclose(got, want, rel_tol=1e-12, abs_tol=1e-300), (spec, u, got, want)
            else: assert got==want and type(got) is type(want), (spec, u, got, want)


def test_a_thousand_random_histories_stop_as_the_engine_stops_them():
    assert len(ORACLE['stops'])==1000 and sum(bool(o) for *_,o in ORACLE['stops'])>300
    for told,runs,stopped in ORACLE['stops']:
        spec = read_spec(dict(method='random', parameters=dict(a=dict(min=0, max=9))) | told)
        rule = Hyperband(spec.early_terminate, spec.metric['name'], spec.goal)
        for i,(_,history) in enumerate(runs):
            for v in history: rule.add(i, v)
        assert [i for i,(state,_) in enumerate(runs) if state=='running' and rule.verdict(i).stop]==stopped, told


# forms found in public repositories, written anew: file -> what is said of it (a note, or an error after '!')

BODY = 'parameters: {lr: {min: 0.0, max: 1.0}}\n'
FOUND = {
    'program: train.py\nmethod: bayes\nmetric: {name: val/auc, goal: maximize}\nparameters:\n  model:\n    parameters:\n      depth: {distribution: int_uniform, min: 4, max: 12}\n  data:\n    parameters:\n      split: {values: [0.15, 0.2]}\nearly_terminate: {type: hyperband, min_iter: 5, s: 2}\n': 's counts only with max_iter',
    'method: bayes\nmetric: {name: l}\nparameters:\n  lr: {min: 1e-5, max: 1e-2, distribution: log_uniform}\n': 'write log_uniform_values',
    'method: random\nparameters:\n  lr: {distribution: log_uniform, min: 100, max: 1000000}\n': '!write `distribution: log_uniform_values`',
    'method: random\nparameters:\n  n: {distribution: q_log_uniform_values, min: 10.5, max: 1000.5, q: 1}\n  f: {distribution: log_normal, mu: -4.6, sigma: 2.3}\n': '',
    'method: bayes\nmetric: {name: l}\nparameters:\n  lr: {min: !!float 1.5e-6, max: !!float 1.5e-5}\n': '',
    'method: random\nparameters:\n  lr: {distribution: log_uniform_values, min: 6.e-5, max: 5.e-3}\n': '',
    'method: grid\nname: probes\nparameters:\n  layers: {value: [ 128 ]}\n  verbose: {value: True}\n  run:\n    parameters:\n      workers: {value: 6}\n': '',
    'method: grid\nparameters:\n  seed.: {values: [40, 41]}\n': 'does not nest',
    'method: random\nmetric: {name: l, goal: min}\n'+BODY: "!did you mean 'minimize'",
    'method: bayes\nmetric: {name: m}\nearly_terminate: {type: envelope}\n'+BODY: '!W&B has removed',
    'method: bayes\nmetric: {name: m}\nparameters:\n  r: {min: 0.3, max: 0.1}\n': '!exchange them',
    'method: bayes\nmetric: {name: m}\nparameters:\n  d: {min: 0}\n': '!',
    'hydra:\n  sweeper:\n    wandb_sweep_config:\n      method: bayes\n      metric: {name: Val/loss, goal: minimize}\n      '+BODY: '',
    'seed: 1\nsweep:\n  method: random\n  '+BODY: '',
    'program: t.py\nmethod: random\ncommand: "- ${env}\\n - python3\\n - t.py\\n - ${args}"\n'+BODY: '!`command` is a list',
    'program: t.py\nmethod: random\ncommand: [python, t.py, "--lr=${lr}"]\n'+BODY: 'a macro must be the whole item',
    'program: t.py\nmethod: random\ncommand: ["${env}", python, -m, scripts.t, +experiment=x, "${args_no_hyphens}", "hydra.run.dir=runs/${now:%H}"]\nparameters: {trainer.lr: {min: 0.0, max: 1.0}}\n': 'a dot does not nest',
    'program: t.py\nmethod: random\ncommand: ["${env}", "${interpreter}", "${program} ${args}"]\n'+BODY: 'is no macro and vanishes',
    'program: t.py\nmethod: grid\nparameters: {flag: {values: [true, false]}}\n': 'args_no_boolean_flags',
    'method: bayes\nmetric: {name: m}\njob: team/p/train:latest\nscheduler: {job: team/p/sched:v1, num_workers: 4}\n'+BODY: 'here write `mlstack sweep FILE --workers 4`',
    'method: custom\nscheduler: {job: team/p/sched:v1}\n'+BODY: '!write `method: bayes` and remove `scheduler:`',
    'method: custom\nscheduler: {engine: optuna}\nmetric: {name: m}\n'+BODY: 'searched here, by bayes',
    'method: bayes\nmetric: {name: m}\nimage_uri: team/image:1\nrun_cap: 5\n'+BODY: 'a job of W&B launch',
    'method: random\ntags: [a, b]\n'+BODY: 'tags: no key of a sweep, ignored',
    'method: random\nlr: {values: [1, 2]}\n'+BODY: '!indent it below `parameters:`',
    'method: random\nparameters:\n  opt:\n    lr: {values: [1, 2]}\n    name: {values: [a, b]}\n': '!not under `parameters:`',
    'method: random\nparameters:\n  1.kernel: {min: 0.0, max: 1.0}\n': '!cannot be the name',
    'method: Random\n'+BODY: '!write it small: random',
    'method: random\ngoal: minimize\n'+BODY: '!belongs under `metric:`',
    'method: random\ncount: 20\n'+BODY: '!run_cap: 20',
    'method: random\nprior_runs: [abc]\n'+BODY: '!Sweep(prior=)',
    'method: random\ncontroller: {type: local}\napiVersion: v1\nkind: sweep\nentity: team\n'+BODY: 'entity: only W&B',
    'method: random\nmetric: {name: m, impute: latest, impute_while_running: best, target: 0.9}\n'+BODY: 'impute_while_running is ignored',
    'method: random\nparameters:\n  a: {distribution: categorical, values: [1, 2], probabilities: [0.5, 0.5]}\n': '!remove `distribution: categorical`',
    'method: grid\nparameters:\n  a: {distribution: q_uniform, min: 0, max: 1, q: 0.1}\n  b: {min: 1, max: 3}\n': '',
    'method: grid\n'+BODY: '!a grid cannot enumerate lr',
}


@pytest.mark.parametrize('text', FOUND, ids=lambda t: re.sub(r'\W+', '-', FOUND[t])[:40]+str(list(FOUND).index(t)))
def test_every_form_runs_or_says_what_to_write(text, tmp_path):
    want = FOUND[text]
    if want.startswith('!'):
        with pytest.raises(SpecError) as e: read_spec(text)
        assert want[1:].lower() in str(e.value).lower() and e.value.do, str(e.value)
        return
    s = Sweep(text, runs_dir=tmp_path)
    assert want in '\n'.join(s.spec.warnings), s.spec.warnings
    for _ in range(2):
        if (t := s.ask()) is not None: s.tell(t, .5)
    assert s.trials and s.spec.flat(s.trials[0].config)
    s.close()


def test_a_note_of_hydra_is_left_alone():
    spec = read_spec('program: t.py\nmethod: random\ncommand: [python, t.py, "${args_no_hyphens}", "hydra.run.dir=runs/${now:%H}", "out=${oc.env:HOME}"]\n'+BODY)
    assert not surprises(spec)
    assert expand(spec.command, 't.py', dict(lr=.5))[2:]==['lr=0.5', 'hydra.run.dir=runs/${now:%H}', 'out=${oc.env:HOME}']


def test_a_parameter_named_like_a_macro(tmp_path):
    spec = read_spec('program: t.py\nmethod: grid\nparameters: {program: {value: x}, env: {value: 1}, args: {value: 2}}\n')
    assert sum('has nothing to do with the macro' in o for o in spec.warnings)==3
    assert expand(spec.command, 't.py', dict(program='x', env=1, args=2))==['/usr/bin/env','python','t.py','--program=x','--env=1','--args=2']


# our own additions

OURS = '''
method: random
metrics: [{name: acc, goal: maximize}, {name: latency}]
run_cap: 12
parameters:
  opt: {values: [sgd, adam]}
  sgd:
    condition: {opt: sgd}
    parameters:
      momentum: {min: 0.0, max: 0.9}
      decay: {min: 0.0, max: 0.1, condition: {nesterov: true}}
      nesterov: {values: [true, false]}
  width: {values: [64, 256, 1024]}
  depth: {min: 1, max: 24}
constraints:
  - width * depth <= 4096
'''

BAD = {
    'opt: sgd}': ('opt: sdg}', "did you mean 'sgd'"), 'condition: {opt': ('condition: {optt', "did you mean 'opt'"), '{nesterov: true}': ('{decay: 1}', 'a condition of itself'),
    'width * depth': ('width * dept', "did you mean 'depth'"), '<= 4096': ('<=', 'is no expression'), '{name: latency}': ('{name: acc}', 'is there twice'),
    ', {name: latency}': ('', 'two or more'), 'run_cap: 12': ('metric: {name: a}', 'keep one of them'), '{values: [sgd, adam]}': ('{values: [sgd, adam], condition: {sgd.nesterov: true}}', 'circle'),
    'condition: {opt: sgd}': ('condition: sgd', 'a condition is a mapping'), '{nesterov: true}}': ('{momentum: 0.5}}', 'has no list of values'),
    'constraints:\n': ('constraints:\n  - __import__("os").system("x") == 0\n', 'cannot be called'),
}


def test_conditions_and_constraints_are_kept(tmp_path):
    spec = read_spec(OURS)
    assert [m['goal'] for m in spec.metrics]==['maximize','minimize'] and spec.metric is spec.metrics[0]
    point = {('opt',):'sgd', ('sgd','momentum'):.5, ('sgd','decay'):.1, ('sgd','nesterov'):False, ('width',):256, ('depth',):2}
    assert set(spec.active(point))==point.keys()-{('sgd','decay')}
    assert set(spec.active(point|{('opt',):'adam'}))=={('opt',),('width',),('depth',)}
    assert spec.broken(point)=='' and spec.broken(point|{('depth',):24})=='width * depth <= 4096'
    point = {p:point[p] for p in spec.active(point)}
    assert spec.flat(spec.config(point))==point
    with pytest.raises(SpecError, match='lacks the parameter depth'): spec.flat(dict(opt='adam', width=64))


@pytest.mark.parametrize('old', BAD)
def test_bad_additions_say_what_to_do(old):
    new,word = BAD[old]
    with pytest.raises(SpecError) as e: read_spec(OURS.replace(old, new, 1))
    assert word in str(e.value).lower() or word in str(e.value), str(e.value)


def test_stopping_rules_of_ours():
    base = dict(method='random', metric=dict(name='m'), parameters=dict(a=dict(min=0., max=1.)))
    rule = lambda **kw: read_spec(base | dict(early_terminate=kw)).early_terminate
    assert rule(type='asha')==dict(type='asha', eta=3, min_iter=1)
    assert rule(type='median', min_iter=5)==dict(type='median', min_iter=5) and rule(type='none') is None
    for kw,word in ((dict(type='asha', s=2), "unknown key 's'"), (dict(type='asha', min_iter=9, max_iter=9), 'not above min_iter'), (dict(type='asha', eta=1), 'eta must be above 1'), (dict(type='medain'), "Did you mean 'median'"), ({}, 'has no type')):
        with pytest.raises(SpecError, match=re.escape(word)): rule(**kw)
    with pytest.raises(SpecError, match='one metric, not several'): read_spec(OURS+'early_terminate: {type: asha}\n')


def test_the_schema_takes_what_we_take_and_refuses_what_we_refuse():
    jsonschema.Draft202012Validator.check_schema(schema())
    check = jsonschema.Draft202012Validator(schema())
    for text,want in FOUND.items():
        if want.startswith('!') or any(o in text for o in ('sweep:','sweeper:','tags','num_workers')): continue
        assert not list(check.iter_errors(read_spec(text).raw)), text
    raw = read_spec(OURS).raw
    check.validate(raw)
    for change in (dict(metric=dict(name='m')), dict(constraints='x'), dict(early_terminate=dict(type='asha', s=2)), dict(early_terminate=dict(type='hyperband')), dict(method='baies'), dict(run_cap=0), dict(prog='x'), dict(parameters={}),
                   dict(parameters=dict(a=dict(distribution='normal', min=1)))):
        assert list(check.iter_errors(raw | change)), change


# explain

@pytest.mark.parametrize('width', [40, 80, 120])
def test_explain_fits_and_says_everything(width, tmp_path):
    (tmp_path/'train.py').touch()
    text = OURS.replace('metrics: [{name: acc, goal: maximize}, {name: latency}]','metric: {name: acc}\nprogram: train.py\nearly_terminate: {type: hyperband, max_iter: 27, s: 2}')
    out = outline(text, seconds=60, workers=3, cwd=tmp_path).text(width)
    words = ' '.join(out.split())
    for o in ('random, minimize acc', '12 trials (run_cap), 3 at a time, each 1 min: 4 min', 'at reports 3, 9', 'width * depth <= 4096', 'train.py --', 'only if opt is sgd', 'strict is not given', 'the first trials'): assert o in words, (o, out)
    if width>=80: assert all(len(o)<=width for o in out.splitlines() if not o.startswith('folder')), out


def test_explain_names_the_problem(tmp_path):
    (tmp_path/'train.py').touch()
    o = outline('program: trian.py\nmethod: grid\nparameters: {a: {values: [1, 2, 3]}, b: {min: 1, max: 4}}\n', cwd=tmp_path)
    assert o.size==12 and 'there is no trian.py' in o.problem and "did you mean 'train.py'" in o.problem.lower() and 'problem' in str(o)
    assert 'without end: say --count' in str(outline('method: random\n'+BODY))
