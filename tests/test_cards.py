"The table of cards, names as drivers say them, GPUs through a stand-in for the driver, measuring and choosing."
import json, os, sys, types, warnings
from datetime import date

import pytest

from mlstack.core import MlstackError
from mlstack.env import machine
from mlstack.env.machine import Gpu, Gpus, Process, amd, gpus, nvidia
from mlstack.hardware.cards import Card, card, cards
from mlstack.hardware.choosing import _work, break_even, preemption, price_list, recommend
from mlstack.hardware.devices import generation, generations, precision

formats = 'tf32', 'fp16', 'bf16', 'fp8', 'fp4'


# The table

def test_each_row_is_found_by_its_own_name_and_nothing_is_negative():
    for name, c in cards.items():
        assert card(name) is c and card(c) is c
        assert c.memory > 0 and c.bandwidth > 0 and 2012 <= c.year <= 2026, name
        assert all(r is None or r >= 0 for r in (c.fp32, *(getattr(c, f) for f in formats), c.link, c.power)), name


def test_rates_grow_towards_fewer_bits_and_agree_with_the_generation():
    for c in cards.values():
        known = [r for r in (c.fp32, c.tf32, c.bf16, c.fp8, c.fp4) if r]
        assert known == sorted(known), c
        if c.maker == 'NVIDIA' and c.tensor_cores:
            assert {f for f in formats if getattr(c, f) != 0} - set(generation(c.capability).formats) == set(), c
            if c.kind != 'edge': assert {f for f in formats if getattr(c, f)} == set(generation(c.capability).formats), c


def test_every_generation_has_its_cards():
    for capability, g in generations.items():
        of = [c.name for c in cards.values() if c.capability == capability and c.kind != 'laptop']
        assert g.cards == ', '.join(of)
    assert {(3,5), (5,2), (6,1), (7,0), (7,5), (8,0), (8,6), (8,9), (9,0), (10,0), (12,0)} <= {c.capability for c in cards.values()}


@pytest.mark.parametrize('name, bf16, fp8', [('A100', 312, 0), ('H100', 989, 1979), ('RTX 4090', 165.2, 330.4), ('RTX 6000 Ada', 364.4, 728.8), ('RTX 5090', 209.6, 419.2), ('B200', 2250, 4500)])
def test_rates_are_dense_with_sums_in_fp32(name, bf16, fp8): assert (card(name).bf16, card(name).fp8) == (bf16, fp8)


@pytest.mark.parametrize('said, row', [
    ('NVIDIA A100-SXM4-80GB', 'A100'), ('NVIDIA A100-SXM-80GB', 'A100'), ('NVIDIA A100 80GB PCIe', 'A100 PCIe'), ('A100-PCIE-40GB', 'A100 PCIe 40GB'), ('NVIDIA A10G', 'A10G'), ('NVIDIA A10', 'A10'),
    ('NVIDIA H100 NVL', 'H100 NVL'), ('NVIDIA H200', 'H200'), ('NVIDIA B300 SXM6 AC', 'B300'), ('NVIDIA GH200 480GB', 'GH200'), ('NVIDIA GH200 144G HBM3e', 'GH200 144GB'), ('NVIDIA GB10', 'GB10'),
    ('NVIDIA GeForce RTX 4090 Laptop GPU', 'RTX 4090 Laptop'), ('NVIDIA GeForce RTX 4090 D', 'RTX 4090 D'), ('NVIDIA GeForce RTX 3080', 'RTX 3080'), ('NVIDIA GeForce RTX 3080 Ti', 'RTX 3080 Ti'), ('NVIDIA GeForce GTX 1060 3GB', 'GTX 1060 3GB'),
    ('NVIDIA GeForce GTX 1060 6 GB', 'GTX 1060 6GB'), ('NVIDIA TITAN X (Pascal)', 'TITAN X Pascal'), ('GeForce GTX TITAN X', 'GTX TITAN X'), ('NVIDIA TITAN Xp', 'TITAN Xp'), ('Tesla V100-PCIE-32GB', 'V100 PCIe'), ('Tesla P100-PCIE-12GB', 'P100 PCIe 12GB'),
    ('Tesla K40m', 'K40'), ('Quadro RTX 8000', 'Quadro RTX 8000'), ('RTX 4000', 'Quadro RTX 4000'), ('NVIDIA RTX A4000', 'RTX A4000'), ('NVIDIA RTX 4000 Ada Generation', 'RTX 4000 Ada'), ('NVIDIA RTX 4000 SFF Ada Generation', 'RTX 4000 SFF Ada'),
    ('NVIDIA RTX PRO 6000 Blackwell Server Edition', 'RTX PRO 6000'), ('NVIDIA A40-48Q', 'A40'), ('GRID T4-16Q', 'T4'), ('AMD Instinct MI250X', 'MI250X'), ('AMD Radeon PRO W7900', 'Radeon PRO W7900'), ('Apple M4', 'M4'), ('TPU v4', 'TPU v4'), ('TPU v6 lite', 'TPU v6e'),
    ('NVIDIA Jetson AGX Orin', 'Jetson AGX Orin'), ('A6000', 'RTX A6000'), ('1080 ti', 'GTX 1080 Ti'), ('7900 XTX', 'RX 7900 XTX')])
def test_names_as_drivers_and_people_say_them(said, row): assert card(said).name == row


@pytest.mark.parametrize('said, near', [('NVIDIA GeForce RTX 4090 Ti', 'RTX 4090'), ('Tesla M4', 'M40'), ('A100 50GB', 'A100'), ('NVIDIA GeForce RTX 2070 with Max-Q Design', 'RTX 2070'), ('NVIDIA Graphics Device', ''), ('AMD Radeon Graphics', ''), ('', ''), (None, ''), (7, ''), ('MIG 1g.10gb', 'A100')])
def test_what_is_not_there_is_an_error_with_near_names(said, near):
    with pytest.raises(MlstackError) as e: card(said)
    assert near in str(e.value) and len(str(e.value)) < 900


def test_a_laptop_is_not_the_desktop_card():
    laptop, desktop = card('NVIDIA GeForce RTX 4090 Laptop GPU'), card('NVIDIA GeForce RTX 4090')
    assert laptop.memory < desktop.memory and laptop.fp32 < desktop.fp32/2


@pytest.mark.parametrize('said, memory, part', [('NVIDIA A100-SXM4-40GB MIG 1g.5gb', 5, 1/7), ('NVIDIA H100 80GB HBM3 MIG 3g.40gb', 40, 3/7), ('NVIDIA A30 MIG 2g.12gb', 12, 2/4)])
def test_slices(said, memory, part):
    whole, mig = card(said.split(' MIG')[0]), card(said)
    assert mig.memory == memory and mig.bf16 == pytest.approx(whole.bf16*part, abs=.1) and mig.bandwidth == pytest.approx(whole.bandwidth*memory/whole.memory, rel=.02) and mig.link == 64


def test_a_gpu_newer_than_the_table_has_what_its_driver_says():
    c = card(Gpu(0, 'NVIDIA R300', 'GPU-x', 288 << 30, 280 << 30, (13,0)))
    assert (c.memory, c.capability, c.bf16, c.fp4, c.kind) == (288, (13,0), None, None, 'unknown')
    with pytest.raises(MlstackError, match='benchmark'): c.rate('bf16')
    assert precision(Gpu(0, 'NVIDIA R300', 'GPU-x', 288 << 30, 280 << 30, (13,0))) == 'bf16'
    old = card(Gpu(0, 'NVIDIA Oldtimer', 'GPU-y', 2 << 30, 1 << 30, (3,0)))
    assert old.bf16 == 0 and old.memory == 2


@pytest.mark.parametrize('name, best', [('T4', 'fp16'), ('V100', 'fp16'), ('K80', 'fp32'), ('GTX 1080', 'fp32'), ('GTX 1660', 'fp16'), ('P100', 'fp32'), ('RTX 3060', 'bf16'), ('NVIDIA H100 80GB HBM3', 'bf16'), ('MI50', 'fp16'), ('MI300X', 'bf16'), ('M2 Max', 'fp32'), ('TPU v5e', 'bf16'), ('Orin', 'bf16')])
def test_precision_of_a_card_says_why(name, best):
    p = precision(name)
    assert p == best and card(name).name in p.reason


def test_precision_of_a_card_agrees_with_that_of_its_device():
    from mlstack.hardware.devices import precision_for
    for c in cards.values():
        if c.maker == 'NVIDIA': assert precision(c) == precision_for('cuda', c.capability), c.name


def test_the_table_needs_no_torch():
    code = "import sys; from mlstack.hardware import precision; from mlstack.hardware.cards import card; precision('T4'), card('H100').rate('fp8'); print('torch' in sys.modules)"
    from tests import house
    assert house.run(sys.executable, '-c', code, env=house.environment(PYTHONPATH=house.root)).stdout.strip() == 'False'


# GPUs, with a stand-in in the place of the driver

class Refused(Exception): pass

def driver(cards_, processes={}, names={}):  # noqa: B006 (only read)
    "A module that answers as NVML does. A card is a dict; what it lacks is refused; `lost` is raised for its handle."
    n = types.ModuleType('pynvml')
    def of(key):
        def ask(h, *args):
            if key not in h: raise Refused('Not Supported')
            v = h[key]
            return v(*args) if callable(v) else v
        return ask
    def handle(i):
        if 'lost' in cards_[i]: raise Refused(cards_[i]['lost'])
        return cards_[i]
    n.nvmlInit = n.nvmlShutdown = lambda: None
    n.nvmlSystemGetDriverVersion = lambda: b'580.65.06'
    n.nvmlSystemGetCudaDriverVersion_v2 = lambda: 13000
    n.nvmlDeviceGetCount = lambda: len(cards_)
    n.nvmlDeviceGetHandleByIndex = handle
    for ask, key in dict(nvmlDeviceGetName='name', nvmlDeviceGetUUID='uuid', nvmlDeviceGetMemoryInfo='memory', nvmlDeviceGetCudaComputeCapability='capability', nvmlDeviceGetMigMode='mig', nvmlDeviceGetComputeRunningProcesses='compute',
            nvmlDeviceGetGraphicsRunningProcesses='graphics', nvmlDeviceGetUtilizationRates='used', nvmlDeviceGetTemperature='temperature', nvmlDeviceGetPowerUsage='power', nvmlDeviceGetEnforcedPowerLimit='limit', nvmlDeviceGetCurrentClocksEventReasons='reasons',
            nvmlDeviceGetCurrentClocksThrottleReasons='old_reasons', nvmlDeviceGetTotalEccErrors='ecc', nvmlDeviceGetNvLinkState='link', nvmlDeviceGetMaxMigDeviceCount='most', nvmlDeviceGetMigDeviceHandleByIndex='slice').items(): setattr(n, ask, of(key))
    def process_name(pid):
        if pid not in names: raise Refused('Insufficient Permissions')
        return names[pid].encode()
    n.nvmlSystemGetProcessName = process_name
    return n

def memory(total, free): return types.SimpleNamespace(total=total << 30, free=free << 30)
def process(pid, gib=None): return types.SimpleNamespace(pid=pid, usedGpuMemory=None if gib is None else gib << 30)
def a_card(**kw): return dict(name=b'NVIDIA H100 80GB HBM3', uuid=b'GPU-1', memory=memory(80, 60), capability=(9,0), compute=[]) | kw

@pytest.fixture
def machine_with(monkeypatch, tmp_path):
    def put(*cards_, **kw):
        monkeypatch.setattr(machine, '_driver_files', (str(tmp_path),))
        monkeypatch.setitem(sys.modules, 'pynvml', driver(list(cards_), **kw))
    return put


def test_all_that_the_driver_tells(machine_with):
    machine_with(a_card(mig=(0,0), used=types.SimpleNamespace(gpu=97), temperature=lambda sensor: 83, power=690_000, limit=700_000, reasons=0x4 | 0x20 | 0x1, ecc=lambda kind, counter: 2, link=lambda i: 1 if i < 18 else 1/0,
        compute=[process(os.getpid(), 10), process(1, 4)], graphics=[process(1, 5)]))
    g, = gpus()
    assert (g.name, g.memory, g.used, g.temperature, g.power, g.limit, g.ecc, g.links, g.mig, g.capability) == ('NVIDIA H100 80GB HBM3', 80 << 30, .97, 83, 690., 700., 2, 18, False, (9,0))
    assert g.throttled == ('power limit', 'heat')
    assert [(p.pid, p.memory >> 30) for p in g.processes] == [(os.getpid(), 10), (1, 5)]
    me, first = g.processes
    assert me.ours and me.user and 'python' in me.command.lower() + sys.executable and not first.ours
    for shown in (repr(gpus()), gpus()._repr_html_()): assert all(o in shown for o in ('heat', '2 memory errors', '18 NVLinks', '60.0 of 80.0', f'us: {me.user}', 'process 1,'))


def test_what_the_driver_refuses_is_left_out(machine_with):
    machine_with(dict(name='Tesla K40m', uuid='GPU-2', memory=memory(12, 11)))
    g, = gpus()
    assert (g.capability, g.processes, g.used, g.temperature, g.power, g.limit, g.throttled, g.ecc, g.links, g.mig, g.slices) == ((0,0), (), None, None, None, None, (), None, None, False, ())
    assert '–' in repr(gpus())


def test_older_drivers_have_another_word_for_why_a_clock_is_held_down(machine_with):
    machine_with(a_card(old_reasons=0x40))
    assert gpus()[0].throttled == ('heat (hardware)',)


def test_a_dead_gpu_does_not_hide_the_others(machine_with):
    machine_with(a_card(uuid='GPU-a'), dict(lost='GPU is lost'), a_card(uuid='GPU-c', memory=lambda: 1/0), a_card(uuid='GPU-d'))
    found = gpus()
    assert [(g.index, g.uuid) for g in found] == [(0, 'GPU-a'), (3, 'GPU-d')] and [g.index for g in found.lost] == [1, 2]
    assert 'GPU 1 does not answer: GPU is lost' in repr(found) and 'GPU 2' in found._repr_html_()
    assert [g.uuid for g in nvidia()['gpus']] == ['GPU-a', 'GPU-d'] and 'GPU is lost' in nvidia()['problem']


def test_slices_are_shown_with_what_is_on_them(machine_with):
    def nth(i):
        if i in (1, 2): raise Refused('Not Found')
        return dict(name='NVIDIA A100-SXM4-40GB MIG 1g.5gb', uuid=f'MIG-{i}', memory=memory(5, 4), capability=(8,0), compute=[process(99_999_999, 1)])
    machine_with(a_card(name='NVIDIA A100-SXM4-40GB', mig=(1,1), most=4, slice=nth, compute=[process(99_999_999, 1)]), names={99_999_999: '/usr/bin/python3 train.py'})
    g, = gpus()
    assert g.mig and [(s.uuid, card(s).memory) for s in g.slices] == [('MIG-0', 5), ('MIG-3', 5)]
    assert 'slice NVIDIA A100-SXM4-40GB MIG 1g.5gb' in repr(gpus()) and 'somebody we cannot see, process 99999999, 1.0 GiB, /usr/bin/python3 train.py' in repr(gpus())
    assert repr(gpus()).count('process 99999999') == 1 # the whole card and its slice both name it


def test_a_process_of_another_space_is_not_called_ours(machine_with):
    "In a container the driver's number of a process may be one of ours by chance: then the two names differ."
    machine_with(a_card(compute=[process(1, 4)]), names={1: '/opt/nowhere/another-program'})
    p, = gpus()[0].processes
    assert p == Process(1, 4 << 30, None, '/opt/nowhere/another-program', False)


def test_a_driver_that_fails_says_so(machine_with, monkeypatch):
    machine_with(a_card())
    sys.modules['pynvml'].nvmlInit = lambda: 1/0
    assert 'does not answer' in nvidia()['problem'] and list(gpus()) == [] and 'does not answer' in repr(gpus())
    monkeypatch.setitem(sys.modules, 'pynvml', None)
    assert 'nvidia-ml-py' in nvidia()['problem']


def test_capture_does_not_ask_who_is_on_the_gpu(machine_with):
    machine_with(a_card(compute=lambda: 1/0, temperature=lambda s: 1/0))
    from mlstack.env.record import capture
    assert [g['name'] for g in capture()['gpus']] == ['NVIDIA H100 80GB HBM3']


def test_html_of_hostile_names():
    shown = Gpus([Gpu(0, '<script>x</script>', '', 1 << 30, 0, (0,0), (Process(1, 0, '<b>', '<i>'),))], '<u>')._repr_html_()
    assert not any(o in shown for o in ('<script', '<b>', '<i>', '<u>'))


def test_amd_without_any_library(tmp_path):
    d = tmp_path/'sys/class/drm/card2/device'
    d.mkdir(parents=True)
    for name, text in dict(vendor='0x1002', device='0x744c', mem_info_vram_total='25753026560', mem_info_vram_used='x', gpu_busy_percent='').items(): (d/name).write_text(text)
    g, = amd(tmp_path)
    assert (g.name, g.memory, g.free, g.used, g.temperature, g.maker) == ('AMD device 0x744c', 25753026560, 25753026560, None, None, 'AMD')
    assert card(g).kind == 'unknown' and amd(tmp_path/'nothing') == []


# Measuring

def test_a_short_benchmark_is_real_kept_and_compared(tmp_path):
    pytest.importorskip('torch')
    from mlstack.hardware.measuring import Measured, benchmark
    a = benchmark(seconds=.3, device='cpu', folder=tmp_path, keep=tmp_path/'kept')
    b = benchmark(seconds=.3, device='cpu', folder=tmp_path, keep=tmp_path/'kept')
    assert {*a.rates} | {*a.left_out} == {'fp32', 'bf16'} and all(v > 0 for v in (*a.rates.values(), a.bandwidth, a.disk['write'], a.disk['read'], a.loader['0']))
    assert b.before.dict() == a.dict() and benchmark.last('cpu', keep=tmp_path/'kept').dict() == json.loads(json.dumps(b.dict()))
    assert a.before is None and a.changes() == {} and [p.name for p in tmp_path.iterdir()] == ['kept'] # nothing of the disk's test is left
    half = Measured(b.dict() | dict(rates={k: v/2 for k, v in b.rates.items()}, spread={}), Measured(b.dict() | dict(spread={})))
    assert {round(v, 6) for k, v in half.changes().items()} == {-.5} and 'slower than last time' in repr(half) and f'{b.torch}' in half._repr_html_()


def test_what_is_kept_survives_damage(tmp_path):
    pytest.importorskip('torch')
    from mlstack.hardware.measuring import _history, _kept, _who, benchmark
    import torch
    path = _history(_who(torch.device('cpu'))[1], tmp_path)
    for text in ('', '{', '[]', '{"rates": 1}', '[1, null, {"rates": {}}]', '[[]]'):
        path.write_text(text)
        assert _kept(path) == [] and benchmark.last('cpu', keep=tmp_path) is None
    path.unlink()
    assert benchmark(seconds=.1, device='cpu', folder=tmp_path/'not'/'there', keep=False).before is None and not any(tmp_path.iterdir())


def test_a_result_that_cannot_be_kept_is_still_one(tmp_path):
    pytest.importorskip('torch')
    from mlstack.hardware.measuring import benchmark
    (tmp_path/'file').write_text('')
    m = benchmark(seconds=.1, device='cpu', folder=tmp_path, keep=tmp_path/'file'/'kept')
    assert m.bandwidth > 0 and 'could not be kept' in repr(m) and 'could not be kept' in m._repr_html_()


def test_a_cpu_has_no_datasheet_and_a_card_has():
    pytest.importorskip('torch')
    from mlstack.hardware.measuring import Measured
    facts = dict(device='cuda:0', name='NVIDIA H100 80GB HBM3', uuid='u', torch='2.13.0', time='2026-01-01T00:00:00Z', threads=1, rates=dict(bf16=700., fp8=1300.), bandwidth=2900., copies={}, disk=dict(problem='full'), loader={}, spread={}, left_out=dict(fp8='no'), throttled=[])
    assert dict((n, s) for n, _, _, s in Measured(facts).rows()) == {'products in bf16': 989, 'products in fp8': 1979, 'memory': 3350}
    assert '71% of 989' in repr(Measured(facts)) and 'full' in repr(Measured(facts)) and 'fp8 not measured: no' in repr(Measured(facts))
    cpu = Measured(facts | dict(name='Some CPU', rates=dict(fp32=.05)))
    assert Measured(facts)(card('H100')) == dict(bf16=700., fp8=1300., bandwidth=2900.) and Measured(facts)(card('A100')) is None
    assert all(s is None for *_, s in cpu.rows()) and '50 GFLOP/s' in repr(cpu)


@pytest.mark.parametrize('seconds', [0, -1, 'x', None])
def test_a_time_that_is_none(seconds):
    pytest.importorskip('torch')
    from mlstack.hardware.measuring import benchmark
    with pytest.raises(MlstackError, match='seconds'): benchmark(seconds=seconds)


@pytest.mark.gpu
def test_benchmark_on_a_real_gpu(tmp_path):
    import torch
    if not torch.cuda.is_available(): pytest.skip('no GPU')
    from mlstack.hardware.measuring import benchmark
    m = benchmark(folder=tmp_path, keep=tmp_path)
    print(m)
    sheet = card(m.name)
    assert not m.left_out and all(.2 < v/sheet.rate(p) < 1.1 for p, v in m.rates.items()) and .5 < m.bandwidth/sheet.bandwidth < 1.05 and len(m.copies) == 4


# Choosing

def rows(**kw): return [dict(card='H100', how='rent', seller='A', price=2., date='2026-11-01', source='s') | kw]
today = date(2026, 11, 23)

@pytest.mark.parametrize('said, flops', [(1e21, 1e21), ('1e21 FLOPs', 1e21), ('10 H100 hours', 10*3600*989e12*.4), ('10 GPU hours on an A100', 10*3600*312e12*.4), ('2 gpu-hours on a NVIDIA L4', 2*3600*121e12*.4), ('10 H100 hours a month', 36*10*3600*989e12*.4),
    ('20B tokens x 7B parameters', 6*20e9*7e9), ('1.5T tokens and 8e9 params', 6*1.5e12*8e9), (dict(tokens=2e9, parameters=124e6), 6*2e9*124e6)])
def test_work_however_it_is_said(said, flops): assert _work(said).flops == pytest.approx(flops)

@pytest.mark.parametrize('said', ['', 'much', 0, -1, True, [], '5 hours', '5B tokens', dict(tokens=3), 'x tokens x y parameters', '3 Z900 hours'])
def test_work_that_is_none(said):
    with pytest.raises(MlstackError): _work(said)

def test_work_of_a_plan():
    plan = types.SimpleNamespace(flops=2e12, peak=30e9, mfu=.5)
    w = _work((plan, 1000))
    assert (w.flops, w.memory, w.mfu) == (2e15, 30., .5)
    r = recommend('startup', workload=(plan, 10**6), prices=rows(card='T4') + rows(), today=today, spot=False)
    assert r.choice.card.name == 'H100' and {o.card.name: o.cards for o in r.options} == {'H100': 1, 'T4': 3} # 30 GB in slices of 14.4

def test_the_arithmetic_of_renting():
    r = recommend('company', workload='100 H100 hours', prices=rows(), today=today)
    assert (r.choice.cards, round(r.choice.hours, 6), round(r.choice.cost, 6)) == (1, 100., 200.)
    hurry = recommend('company', workload='100 H100 hours', prices=rows(), deadline=10, today=today).choice
    assert (hurry.cards, round(hurry.cost, 6), round(hurry.days, 3)) == (10, 200., .417)

def test_the_arithmetic_of_buying():
    prices = dict(prices=rows() + rows(card='RTX 4090', how='buy', price=[1800, 2200]))
    home = recommend('hobbyist', workload='100 H100 hours', memory=20, prices=prices['prices'], today=today)
    mine = next(o for o in home.options if o.how == 'buy')
    hours = 100*989/165.2
    assert mine.hours == pytest.approx(hours) and mine.cost == pytest.approx(2000 + 1000 + hours*.45*.1872)
    assert home.choice.how == 'rent'
    whole = recommend('hobbyist', workload='100 H100 hours', prices=prices['prices'], today=today) # 72 GB: four cards, and two is the most at home
    assert next(o for o in whole.options if o.how == 'buy')[3::4] == (4, False)

def test_break_even_and_never():
    book = price_list()
    p = next(p for p in book['prices'] if p.card.name == 'RTX 4090' and p.how == 'buy')
    hours, week = break_even(p, 1., book, 'hobbyist')
    assert hours == pytest.approx((1900 + 1000)/(1 - .45*.1872)) and week == pytest.approx(hours/156)
    assert break_even(p, .05, book) is None and break_even(p, .10, book) is None # power costs more; longer than its life

def test_spot_is_chosen_only_where_it_is_cheaper_after_what_is_lost():
    prices = rows() + rows(how='spot', price=1.)
    assert recommend('company', workload=1e21, prices=prices, today=today).choice.how == 'spot'
    assert recommend('company', workload=1e21, prices=prices, lives=.2, today=today).choice.how == 'rent'
    assert all(o.how != 'spot' for o in recommend('company', workload=1e21, prices=prices, spot=False, today=today).options)

def test_young_and_daly():
    every, lost = preemption(lives=50, checkpoint=.01, restart=0)
    assert every == pytest.approx(1) and lost == pytest.approx(.02)
    around = [.01/t + t/2/50 for t in (.5, .9, 1.1, 2)]
    assert all(lost < o for o in around)
    for bad in (dict(lives=0), dict(checkpoint=0), dict(restart=-1)):
        with pytest.raises(MlstackError): preemption(**bad)

def test_one_job_on_several_spot_machines_loses_more():
    prices = rows(how='spot')
    little, much = (recommend('company', workload='1000 H100 hours', prices=prices, deadline=d, today=today).choice for d in (1000, 20))
    assert much.cards > 8 and much.hours > little.hours
    alone = recommend('company', workload='1000 H100 hours', prices=rows(card='RTX 4090'), deadline=20, memory=20, today=today)
    assert alone.choice is None and 'link' in repr(alone)

def test_fast_among_the_cheap():
    prices = rows() + rows(card='B200', price=5.5) + rows(card='T4', price=.1)
    r = recommend('company', workload='100 H100 hours', memory=10, prices=prices, today=today)
    assert [o.card.name for o in r.options] == ['T4', 'H100', 'B200'] and r.choice.card.name == 'T4' # the others cost more than a quarter more
    r = recommend('company', workload='100 H100 hours', memory=10, prices=rows() + rows(card='T4', price=.13), today=today)
    assert r.choice.card.name == 'H100' and 'times the speed' in r.reason

def test_a_company_does_not_rent_from_strangers():
    prices = rows() + rows(seller='Akash', price=1.)
    assert recommend('company', workload='9 H100 hours', prices=prices, today=today).choice.seller == 'A'
    assert recommend('startup', workload='9 H100 hours', prices=prices, today=today).choice.notes == ["a stranger's machine"]
    with pytest.raises(MlstackError, match='company'): recommend('company', prices=prices[1:], today=today)

def test_a_purse_that_is_too_small_says_what_would_do():
    r = recommend('hobbyist', workload='100 H100 hours', budget=100, prices=rows(), today=today)
    assert r.choice is None and '200' in r.reason and r._repr_html_()

def test_prices_age():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        recommend(prices=rows(), today=today)
        with pytest.raises(UserWarning, match='older than six months'): recommend(prices=rows(date='2026-03'), today=today)

@pytest.mark.parametrize('bad, says', [(dict(source=''), 'source'), (dict(date=None), 'date'), (dict(date='lately'), 'no date'), (dict(how='steal'), 'used'), (dict(card='H900'), 'table of cards'), (dict(price='cheap'), 'dollars'), (dict(colour='red'), 'colour')])
def test_a_price_that_is_a_rumour_is_refused(bad, says):
    with pytest.raises(MlstackError, match=says): price_list(rows(**bad))

def test_a_file_of_prices(tmp_path):
    import yaml
    f = tmp_path/'mine.yaml'
    f.write_text(yaml.safe_dump(dict(prices=rows(date=date(2026, 11, 2)), electricity=dict(home=.3, business=.2))))
    book = price_list(f)
    assert book['electricity']['home'] == .3 and book['host'] == price_list()['host'] and book['prices'][0].date == date(2026, 11, 2)
    for text in ('', '[]', 'prices: []', ': :'):
        f.write_text(text)
        with pytest.raises(MlstackError, match='mine.yaml'): price_list(f)
    with pytest.raises(MlstackError, match='cannot be read'): price_list(tmp_path/'none.yaml')

def test_our_prices_have_dates_and_sources_and_name_cards():
    for p in price_list()['prices']: assert isinstance(p.card, Card) and p.source and date(2026, 1, 1) <= p.date <= date(2026, 11, 23) and 0 < p.price

def test_measured_rates_are_used():
    slow = dict(name='H100', rates=dict(bf16=494.5), bandwidth=1.)
    assert recommend('company', workload='100 H100 hours', prices=rows(), measured=slow, today=today).choice.hours == pytest.approx(200)

@pytest.mark.parametrize('profile', ['hobbyist', 'startup', 'company'])
def test_every_profile_gets_an_answer_without_a_question(profile):
    r = recommend(profile, prices=rows(), today=today)
    assert r.choice and r.development in repr(r) and any('none was given' in a for a in r.assumed)

@pytest.mark.parametrize('kw', [dict(budget=0), dict(budget=-5), dict(budget=float('nan')), dict(budget='100'), dict(deadline=0), dict(deadline=-1), dict(memory=-1), dict(workload=float('inf')), dict(workload='0 H100 hours'), dict(workload=dict(tokens=-1, parameters=5)), dict(workload='1.5.2 H100 hours')])
def test_amounts_that_are_none(kw):
    with pytest.raises(MlstackError): recommend('startup', **kw)

def test_the_shell_says_what_to_buy_without_a_warning(capsys):
    from mlstack.cli.machine_commands import recommend
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        recommend('hobbyist', budget=None, workload='300 H100 hours', prices=None, memory=40., deadline=100., spot=False)
    said = capsys.readouterr().out
    assert 'GPU hours' in said and 'prices.yaml' in said and 'spot,' not in said and '\nchosen of' in said
