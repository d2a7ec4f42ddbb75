from glowserve.v1 import manifest_pb2 as _manifest_pb2
from glowserve.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FORMAT_UNSPECIFIED: _ClassVar[ImageFormat]
    IMAGE_FORMAT_PNG: _ClassVar[ImageFormat]
    IMAGE_FORMAT_RAW: _ClassVar[ImageFormat]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_SERVING: _ClassVar[ModelState]
    MODEL_STATE_FAILING: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_REFUSED: _ClassVar[ModelState]
IMAGE_FORMAT_UNSPECIFIED: ImageFormat
IMAGE_FORMAT_PNG: ImageFormat
IMAGE_FORMAT_RAW: ImageFormat
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_SERVING: ModelState
MODEL_STATE_FAILING: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_REFUSED: ModelState

class ModelSpec(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ModelVersion(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Images(_message.Message):
    __slots__ = ("encoded", "tensor")
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    encoded: EncodedImages
    tensor: _tensor_pb2.Tensor
    def __init__(self, encoded: _Optional[_Union[EncodedImages, _Mapping]] = ..., tensor: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class EncodedImages(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, data: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("model", "images", "seed", "scores", "false_alarm_rate", "importance_samples", "classes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    FALSE_ALARM_RATE_FIELD_NUMBER: _ClassVar[int]
    IMPORTANCE_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    images: Images
    seed: int
    scores: _containers.RepeatedScalarFieldContainer[str]
    false_alarm_rate: float
    importance_samples: int
    classes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., seed: _Optional[int] = ..., scores: _Optional[_Iterable[str]] = ..., false_alarm_rate: _Optional[float] = ..., importance_samples: _Optional[int] = ..., classes: _Optional[_Iterable[str]] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("model", "seed", "scores", "false_alarm_rate")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    FALSE_ALARM_RATE_FIELD_NUMBER: _ClassVar[int]
    model: ModelVersion
    seed: int
    scores: _containers.RepeatedCompositeFieldContainer[ImageScore]
    false_alarm_rate: float
    def __init__(self, model: _Optional[_Union[ModelVersion, _Mapping]] = ..., seed: _Optional[int] = ..., scores: _Optional[_Iterable[_Union[ImageScore, _Mapping]]] = ..., false_alarm_rate: _Optional[float] = ...) -> None: ...

class ImageScore(_message.Message):
    __slots__ = ("log_likelihood", "bits_per_dim", "percentile", "finite", "anomaly_p_value", "anomalous", "typicality_p_value", "complexity_bits_per_dim", "bits_per_dim_minus_complexity", "log_prior", "log_det", "standard_error", "log_posterior")
    LOG_LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_DIM_FIELD_NUMBER: _ClassVar[int]
    PERCENTILE_FIELD_NUMBER: _ClassVar[int]
    FINITE_FIELD_NUMBER: _ClassVar[int]
    ANOMALY_P_VALUE_FIELD_NUMBER: _ClassVar[int]
    ANOMALOUS_FIELD_NUMBER: _ClassVar[int]
    TYPICALITY_P_VALUE_FIELD_NUMBER: _ClassVar[int]
    COMPLEXITY_BITS_PER_DIM_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_DIM_MINUS_COMPLEXITY_FIELD_NUMBER: _ClassVar[int]
    LOG_PRIOR_FIELD_NUMBER: _ClassVar[int]
    LOG_DET_FIELD_NUMBER: _ClassVar[int]
    STANDARD_ERROR_FIELD_NUMBER: _ClassVar[int]
    LOG_POSTERIOR_FIELD_NUMBER: _ClassVar[int]
    log_likelihood: float
    bits_per_dim: float
    percentile: float
    finite: bool
    anomaly_p_value: float
    anomalous: bool
    typicality_p_value: float
    complexity_bits_per_dim: float
    bits_per_dim_minus_complexity: float
    log_prior: _containers.RepeatedScalarFieldContainer[float]
    log_det: _containers.RepeatedScalarFieldContainer[float]
    standard_error: float
    log_posterior: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, log_likelihood: _Optional[float] = ..., bits_per_dim: _Optional[float] = ..., percentile: _Optional[float] = ..., finite: bool = ..., anomaly_p_value: _Optional[float] = ..., anomalous: bool = ..., typicality_p_value: _Optional[float] = ..., complexity_bits_per_dim: _Optional[float] = ..., bits_per_dim_minus_complexity: _Optional[float] = ..., log_prior: _Optional[_Iterable[float]] = ..., log_det: _Optional[_Iterable[float]] = ..., standard_error: _Optional[float] = ..., log_posterior: _Optional[_Iterable[float]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("model", "images")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    images: Images
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("model", "deviations", "explanations")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DEVIATIONS_FIELD_NUMBER: _ClassVar[int]
    EXPLANATIONS_FIELD_NUMBER: _ClassVar[int]
    model: ModelVersion
    deviations: _tensor_pb2.Tensor
    explanations: _containers.RepeatedCompositeFieldContainer[ImageExplanation]
    def __init__(self, model: _Optional[_Union[ModelVersion, _Mapping]] = ..., deviations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., explanations: _Optional[_Iterable[_Union[ImageExplanation, _Mapping]]] = ...) -> None: ...

class ImageExplanation(_message.Message):
    __slots__ = ("finite", "parts")
    FINITE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    finite: bool
    parts: _containers.RepeatedCompositeFieldContainer[ImagePart]
    def __init__(self, finite: bool = ..., parts: _Optional[_Iterable[_Union[ImagePart, _Mapping]]] = ...) -> None: ...

class ImagePart(_message.Message):
    __slots__ = ("name", "level", "value", "deviation")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    DEVIATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    level: int
    value: float
    deviation: float
    def __init__(self, name: _Optional[str] = ..., level: _Optional[int] = ..., value: _Optional[float] = ..., deviation: _Optional[float] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("model", "n", "temperature", "seed", "format", "class_name")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAME_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    n: int
    temperature: float
    seed: int
    format: ImageFormat
    class_name: str
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., n: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., format: _Optional[_Union[ImageFormat, str]] = ..., class_name: _Optional[str] = ...) -> None: ...

class SampleResponse(_message.Message):
    __slots__ = ("model", "seed", "first_index", "images", "not_finite")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    NOT_FINITE_FIELD_NUMBER: _ClassVar[int]
    model: ModelVersion
    seed: int
    first_index: int
    images: Images
    not_finite: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[_Union[ModelVersion, _Mapping]] = ..., seed: _Optional[int] = ..., first_index: _Optional[int] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., not_finite: _Optional[_Iterable[int]] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("model", "images")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    images: Images
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("model", "latents", "mismatched_values")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    MISMATCHED_VALUES_FIELD_NUMBER: _ClassVar[int]
    model: ModelVersion
    latents: _tensor_pb2.Tensor
    mismatched_values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[_Union[ModelVersion, _Mapping]] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., mismatched_values: _Optional[_Iterable[int]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("model", "latents", "format")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    latents: _tensor_pb2.Tensor
    format: ImageFormat
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., format: _Optional[_Union[ImageFormat, str]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("model", "images")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    model: ModelVersion
    images: Images
    def __init__(self, model: _Optional[_Union[ModelVersion, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ...) -> None: ...

class InterpolateRequest(_message.Message):
    __slots__ = ("model", "images", "steps", "format")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    images: Images
    steps: int
    format: ImageFormat
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., steps: _Optional[int] = ..., format: _Optional[_Union[ImageFormat, str]] = ...) -> None: ...

class InterpolateResponse(_message.Message):
    __slots__ = ("model", "images")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    model: ModelVersion
    images: Images
    def __init__(self, model: _Optional[_Union[ModelVersion, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ...) -> None: ...

class ManipulateRequest(_message.Message):
    __slots__ = ("model", "images", "latents", "attributes", "strengths", "format")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    LATENTS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    STRENGTHS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    images: Images
    latents: _tensor_pb2.Tensor
    attributes: _containers.RepeatedScalarFieldContainer[str]
    strengths: _containers.RepeatedScalarFieldContainer[float]
    format: ImageFormat
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ..., latents: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., attributes: _Optional[_Iterable[str]] = ..., strengths: _Optional[_Iterable[float]] = ..., format: _Optional[_Union[ImageFormat, str]] = ...) -> None: ...

class ManipulateResponse(_message.Message):
    __slots__ = ("model", "images")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    model: ModelVersion
    images: Images
    def __init__(self, model: _Optional[_Union[ModelVersion, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "not_served")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NOT_SERVED_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    not_served: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ..., not_served: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ...) -> None: ...

class ModelSummary(_message.Message):
    __slots__ = ("model", "image", "state", "reason", "classes", "attributes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    model: ModelVersion
    image: _manifest_pb2.ImageSpec
    state: ModelState
    reason: str
    classes: _containers.RepeatedScalarFieldContainer[str]
    attributes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[_Union[ModelVersion, _Mapping]] = ..., image: _Optional[_Union[_manifest_pb2.ImageSpec, _Mapping]] = ..., state: _Optional[_Union[ModelState, str]] = ..., reason: _Optional[str] = ..., classes: _Optional[_Iterable[str]] = ..., attributes: _Optional[_Iterable[str]] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("manifest", "graphs")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    GRAPHS_FIELD_NUMBER: _ClassVar[int]
    manifest: _manifest_pb2.Manifest
    graphs: _containers.RepeatedCompositeFieldContainer[GraphPlacement]
    def __init__(self, manifest: _Optional[_Union[_manifest_pb2.Manifest, _Mapping]] = ..., graphs: _Optional[_Iterable[_Union[GraphPlacement, _Mapping]]] = ...) -> None: ...

class GraphPlacement(_message.Message):
    __slots__ = ("graph", "provider", "nodes")
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    graph: str
    provider: str
    nodes: int
    def __init__(self, graph: _Optional[str] = ..., provider: _Optional[str] = ..., nodes: _Optional[int] = ...) -> None: ...

class ScoreSetRequest(_message.Message):
    __slots__ = ("model", "images")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    model: ModelSpec
    images: Images
    def __init__(self, model: _Optional[_Union[ModelSpec, _Mapping]] = ..., images: _Optional[_Union[Images, _Mapping]] = ...) -> None: ...

class ScoreSetResponse(_message.Message):
    __slots__ = ("model", "n", "p_value", "resolution", "calibration_images", "features", "bits_per_dim", "not_finite", "anomalous", "false_alarm_rate")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    RESOLUTION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_IMAGES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    BITS_PER_DIM_FIELD_NUMBER: _ClassVar[int]
    NOT_FINITE_FIELD_NUMBER: _ClassVar[int]
    ANOMALOUS_FIELD_NUMBER: _ClassVar[int]
    FALSE_ALARM_RATE_FIELD_NUMBER: _ClassVar[int]
    model: ModelVersion
    n: int
    p_value: float
    resolution: float
    calibration_images: int
    features: _containers.RepeatedCompositeFieldContainer[FeatureDifference]
    bits_per_dim: float
    not_finite: int
    anomalous: float
    false_alarm_rate: float
    def __init__(self, model: _Optional[_Union[ModelVersion, _Mapping]] = ..., n: _Optional[int] = ..., p_value: _Optional[float] = ..., resolution: _Optional[float] = ..., calibration_images: _Optional[int] = ..., features: _Optional[_Iterable[_Union[FeatureDifference, _Mapping]]] = ..., bits_per_dim: _Optional[float] = ..., not_finite: _Optional[int] = ..., anomalous: _Optional[float] = ..., false_alarm_rate: _Optional[float] = ...) -> None: ...

class FeatureDifference(_message.Message):
    __slots__ = ("name", "shift", "spread")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    name: str
    shift: float
    spread: float
    def __init__(self, name: _Optional[str] = ..., shift: _Optional[float] = ..., spread: _Optional[float] = ...) -> None: ...
