"Pictures of 32 x 32: a ResNet-18 for them, and the same augmentation twice: item by item, and for a batch on its device."
import torch, torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

class ResNet18(nn.Module):
    "For pictures of 32 x 32: a first convolution of 3 x 3 without stride, no pooling after it."
    def __init__(self, width=64):
        super().__init__()
        conv = lambda i, o, k=3, s=1: nn.Sequential(nn.Conv2d(i, o, k, s, k//2, bias=False), nn.BatchNorm2d(o))
        class Two(nn.Module):
            def __init__(self, i, o, s):
                super().__init__()
                self.a, self.b, self.way = conv(i, o, 3, s), conv(o, o), conv(i, o, 1, s) if s > 1 or i != o else nn.Identity()
            def forward(self, x): return F.relu(self.b(F.relu(self.a(x))) + self.way(x))
        w = [width, width, 2*width, 4*width, 8*width]
        self.layers = nn.Sequential(conv(3, width), nn.ReLU(), *(Two(w[k if j == 0 else k + 1], w[k + 1], 2 if k and j == 0 else 1) for k in range(4) for j in range(2)))
        self.head = nn.Linear(w[-1], 10)
    def forward(self, x): return self.head(self.layers(x).mean((2, 3)))

mean, std = torch.tensor([125.3, 123., 113.9]), torch.tensor([63., 62.1, 66.7])

class Pictures(Dataset):
    "Each item is cropped, mirrored and normalised when it is read, as torchvision's transforms would."
    def __init__(self, x, y): self.x, self.y = x, y
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        x = F.pad(self.x[i].permute(2, 0, 1), (4, 4, 4, 4))
        a, b, turn = torch.randint(0, 9, (3,)).tolist()
        x = x[:, a:a + 32, b:b + 32]
        if turn % 2: x = x.flip(2)
        return (x.float() - mean[:, None, None])/std[:, None, None], self.y[i]

def crop_and_mirror(batch):
    "The same for a batch on the device: one gather."
    x, y = batch
    n = len(x)
    at = torch.arange(32, device=x.device)
    a, b, turn = (torch.randint(0, high, (n, 1), device=x.device) for high in (9, 9, 2))
    columns = torch.where(turn > 0, 31 - at, at) + b
    padded = F.pad(x, (0, 0, 4, 4, 4, 4))
    return padded[torch.arange(n, device=x.device)[:, None, None], (at + a)[:, :, None], columns[:, None, :]], y

def normalised(batch):
    x, y = batch
    return ((x.float() - mean.to(x.device))/std.to(x.device)).permute(0, 3, 1, 2), y
