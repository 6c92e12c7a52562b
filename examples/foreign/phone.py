"""A stock client as the phone: tritonclient, a model's name, and digits. `python phone.py HOST:PORT MODEL ARTEFACT`."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import tritonclient.grpc as triton

target, model, artefact = sys.argv[1], sys.argv[2], Path(sys.argv[3])
with np.load(artefact / "samples.npz") as samples:
    images, labels = samples["images"][:100].astype(np.float32) / 255, samples["labels"][:100]
head = onnxruntime.InferenceSession(artefact / "head.onnx")
client = triton.InferenceServerClient(target)
about = client.get_model_metadata(model)
[entry], exits = about.inputs, [output.name for output in about.outputs]

right = 0
for image, label in zip(images, labels, strict=True):
    [latent] = head.run(None, {"image": image[None]})
    tensor = triton.InferInput(entry.name, list(latent.shape), entry.datatype)
    tensor.set_data_from_numpy(latent)
    scores = client.infer(model, [tensor]).as_numpy(exits[0])
    right += int(scores.argmax() == label)
print(f"{right} of {len(labels)} right, by {target}")
