"""For tests beside a CPU build of torch: lets torchvision's GPU build be imported.

Its Python part wants two operators declared that its compiled part, which needs CUDA, would bring.
Nothing here calls them. Put this folder on PYTHONPATH.
"""

import importlib.abc
import sys


class _Operators(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if torch.version.cuda is None:
                self.library = torch.library.Library("torchvision", "DEF")
                self.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                self.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
                torch.torchvision_operators = self.library  # an operator lives as long as its library
        return None


sys.meta_path.insert(0, _Operators())
