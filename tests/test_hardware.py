"Choices of `mlstack.hardware` over all cards we know, and over nonsense."
import pickle

import pytest

from mlstack import hardware
from mlstack.core import MlstackError
from mlstack.hardware.devices import Precision, generations, precision_for

wants = 'fp32','tf32','bf16','fp16','fp8'


@pytest.mark.parametrize('capability', [*generations, (1,0), (6,2), (8,8), (15,0)])
def test_every_card_gets_a_precision_it_can_compute(capability):
    best = precision_for('cuda', capability)
    assert best == ('bf16' if capability >= (8,0) else 'fp16' if capability >= (7,0) else 'fp32')
    assert best.reason and best.scaler == (best == 'fp16') and best.autocast == (best != 'fp32')
    assert precision_for('cuda', capability, str(best)) == best
    for want in wants:
        try: got = precision_for('cuda', capability, want)
        except MlstackError as e: assert capability < dict(tf32=(8,0), bf16=(8,0), fp16=(5,3), fp8=(8,9))[want], e
        else: assert got == want # never another one in silence


def test_dtypes_are_torch_dtypes():
    import torch
    for want in wants: assert isinstance(getattr(torch, Precision(want).dtype), torch.dtype)


@pytest.mark.parametrize('want', ['half', '', 16, 'BF16', 'fp4', 'bfloat16'])
def test_unknown_precisions_are_refused(want):
    for kind,capability in (('cpu',None), ('mps',None), ('rocm',None), ('cuda',(9,0))):
        with pytest.raises(ValueError, match='allowed|Allowed'): precision_for(kind, capability, want)


def test_fp8_is_for_the_chips_that_have_it():
    for kind,capability in (('cpu',None), ('mps',None), ('rocm',None), ('cuda',(8,0))):
        with pytest.raises(ValueError, match='fp8'): precision_for(kind, capability, 'fp8')
    assert all(precision_for('cuda', c) != 'fp8' for c in generations)


def test_a_precision_travels():
    p = pickle.loads(pickle.dumps(hardware.precision('cpu', want='bf16')))
    assert (p, p.dtype, p.reason) == ('bf16', 'bfloat16', 'asked for')
    assert {p: 1}['bf16'] == 1


def test_asking_for_autocast_on_this_machine_trains():
    import torch
    place = hardware.device()
    p,model = hardware.precision(place),torch.nn.Linear(8,2).to(place)
    with torch.autocast(place.split(':')[0], dtype=getattr(torch, p.dtype) if p.autocast else torch.bfloat16, enabled=p.autocast): loss = model(torch.ones(4,8,device=place)).float().sum()
    loss.backward()
    assert model.weight.grad.dtype == torch.float32


@pytest.mark.parametrize('prefer', ['gpu', '', 'cuda:', 'cuda:-1', 'cpu:x', 'CUDA', 3])
def test_devices_that_are_none(prefer):
    if prefer == 'cuda:' and hardware.device() == 'cuda': pytest.skip('there is a GPU')
    with pytest.raises(MlstackError): hardware.device(prefer)


def test_a_device_that_is_not_here_is_refused_with_what_is():
    missing = next(k for k in ('mps','cuda') if k != hardware.device())
    with pytest.raises(ValueError, match='only .*cpu'): hardware.device(missing)


@pytest.mark.parametrize('per', [0, -1, 1.5, '2', None])
def test_threads_of_nonsense(per):
    with pytest.raises(MlstackError): hardware.threads(per=per)


def test_threads_never_oversubscribe():
    for per in range(1, 2*hardware.cpus()+2):
        n = hardware.threads(per=per)
        assert n >= 1 and (n*per <= hardware.cpus() or n == 1)


@pytest.mark.gpu
def test_precision_on_a_real_gpu():
    import torch
    if not torch.cuda.is_available(): pytest.skip('no GPU')
    assert hardware.precision('cuda').name == precision_for('cuda', torch.cuda.get_device_capability()).name
