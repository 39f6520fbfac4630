"""The models in transformers, pruned as the engine prunes them."""

import torch

from tokenprune import pruning, pruning_report
from tokenprune.patches.families.registry import family_of

from .support import NEW_TOKENS


class Stock:
    """The model in transformers."""

    def __init__(self, folder, dtype=torch.float32):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.positions = "compact" if family_of(self.model).positions == "1d" else "original"

    def inputs(self, case):
        inputs = self.processor(text=[case[0]], images=[case[1]], return_tensors="pt")
        if "token_type_ids" in inputs:  # Gemma 3: on a CPU, the engine has no attention within pictures both ways
            inputs["token_type_ids"].zero_()
        return inputs

    def answers(self, cases, policy, keep, reports=False):
        """Greedy tokens of each case, and what the report says of it."""
        found, said = [], []
        with pruning(self.model, policy, keep, positions=self.positions), torch.inference_mode():
            for inputs in map(self.inputs, cases):
                out = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
                found.append(out[0, inputs["input_ids"].shape[1] :].tolist())
                said.append(pruning_report(self.model))
        return (found, said) if reports else found

    def log_probs(self, cases, policy, keep, positions):
        with pruning(self.model, policy, keep, positions=positions), torch.inference_mode():
            return torch.stack([self.model(**self.inputs(c)).logits[0, -1].float().log_softmax(-1) for c in cases])

    def video_answer(self, text, video, metadata, policy, keep):
        """Greedy tokens of a prompt with one video, and what the report says of it."""
        inputs = self.processor(
            text=[text], videos=[video], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
        )
        with pruning(self.model, policy, keep, positions=self.positions), torch.inference_mode():
            out = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            return out[0, inputs["input_ids"].shape[1] :].tolist(), pruning_report(self.model)
