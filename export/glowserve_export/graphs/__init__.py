"""Turns a FoldedGlow into the three ONNX graphs of a bundle.

`protos/glowserve/v1/manifest.proto` defines the inputs and outputs of the graphs. The size of the batch is free. The
graphs contain neither matrix inverses nor determinants, triangular solves or random operators.
"""

from glowserve_export.graphs.explain import explain_graph
from glowserve_export.graphs.forward import forward_graph
from glowserve_export.graphs.reverse import reverse_graph

__all__ = ["explain_graph", "forward_graph", "reverse_graph"]
