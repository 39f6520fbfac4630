"""What layers of a vision tower are given, and other outputs in their place."""

from tokenprune.patches.modules import named_arguments


class Inputs:
    """What each layer was given, and by layer what comes out of it instead, if anything does."""

    def __init__(self, layers):
        self.given, self.instead, self.handles = {}, {}, []
        for i, layer in enumerate(layers):
            enter = lambda m, args, kwargs, i=i: self.note(i, m, args, kwargs)
            self.handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
            leave = lambda m, args, output, i=i: self.leave(i, output)
            self.handles.append(layer.register_forward_hook(leave, prepend=True))

    def note(self, i, module, args, kwargs):
        named = named_arguments(module.forward, args, kwargs)
        self.given[i] = (named.pop("hidden_states"), named)

    def leave(self, i, output):
        if i not in self.instead:
            return None
        return (self.instead[i], *output[1:]) if isinstance(output, tuple) else self.instead[i]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()
