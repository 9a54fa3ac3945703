"Wheels made on the spot, so that a test of locks and environments needs no network."
import base64, hashlib
from pathlib import Path
from zipfile import ZipFile

def wheel(folder, name, version, requires=(), text='', scripts=(), python='>=3.8', tag='py3-none-any'):
    "The path of a wheel with one module, `NAME/__init__.py`."
    folder, plain = Path(folder), name.replace('-', '_').lower()
    folder.mkdir(parents=True, exist_ok=True)
    info = f'{plain}-{version}.dist-info'
    files = {f'{plain}/__init__.py': text or f'version = {version!r}\ndef main(): print(version)\n',
        f'{info}/METADATA': '\n'.join(['Metadata-Version: 2.1', f'Name: {name}', f'Version: {version}', f'Requires-Python: {python}', *(f'Requires-Dist: {o}' for o in requires), '']),
        f'{info}/WHEEL': f'Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n'}
    if scripts: files[f'{info}/entry_points.txt'] = '[console_scripts]\n' + ''.join(f'{o} = {plain}:main\n' for o in scripts)
    digest = lambda s: base64.urlsafe_b64encode(hashlib.sha256(s.encode()).digest()).decode().rstrip('=')
    files[f'{info}/RECORD'] = ''.join(f'{k},sha256={digest(v)},{len(v)}\n' for k, v in files.items()) + f'{info}/RECORD,,\n'
    path = folder/f'{plain}-{version}-{tag}.whl'
    with ZipFile(path, 'w') as z:
        for k, v in files.items(): z.writestr(k, v)
    return path
