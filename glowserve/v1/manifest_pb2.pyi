import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RandomnessVersion(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RANDOMNESS_VERSION_UNSPECIFIED: _ClassVar[RandomnessVersion]
    RANDOMNESS_VERSION_PHILOX_BOX_MULLER: _ClassVar[RandomnessVersion]
    RANDOMNESS_VERSION_PHILOX_BOX_MULLER_REDRAWN: _ClassVar[RandomnessVersion]
RANDOMNESS_VERSION_UNSPECIFIED: RandomnessVersion
RANDOMNESS_VERSION_PHILOX_BOX_MULLER: RandomnessVersion
RANDOMNESS_VERSION_PHILOX_BOX_MULLER_REDRAWN: RandomnessVersion

class Manifest(_message.Message):
    __slots__ = ("format_version", "model", "version", "created_at", "glowserve_version", "image", "preparation", "flow", "log_det_constant", "files", "training", "verification", "calibration", "randomness", "tools", "canary")
    class ToolsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    GLOWSERVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    PREPARATION_FIELD_NUMBER: _ClassVar[int]
    FLOW_FIELD_NUMBER: _ClassVar[int]
    LOG_DET_CONSTANT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    RANDOMNESS_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    format_version: int
    model: str
    version: int
    created_at: _timestamp_pb2.Timestamp
    glowserve_version: str
    image: ImageSpec
    preparation: Preparation
    flow: Flow
    log_det_constant: float
    files: _containers.RepeatedCompositeFieldContainer[File]
    training: Training
    verification: Verification
    calibration: Calibration
    randomness: RandomnessVersion
    tools: _containers.ScalarMap[str, str]
    canary: Canary
    def __init__(self, format_version: _Optional[int] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., glowserve_version: _Optional[str] = ..., image: _Optional[_Union[ImageSpec, _Mapping]] = ..., preparation: _Optional[_Union[Preparation, _Mapping]] = ..., flow: _Optional[_Union[Flow, _Mapping]] = ..., log_det_constant: _Optional[float] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., training: _Optional[_Union[Training, _Mapping]] = ..., verification: _Optional[_Union[Verification, _Mapping]] = ..., calibration: _Optional[_Union[Calibration, _Mapping]] = ..., randomness: _Optional[_Union[RandomnessVersion, str]] = ..., tools: _Optional[_Mapping[str, str]] = ..., canary: _Optional[_Union[Canary, _Mapping]] = ...) -> None: ...

class ImageSpec(_message.Message):
    __slots__ = ("height", "width", "channels", "n_bits", "latent_size")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    N_BITS_FIELD_NUMBER: _ClassVar[int]
    LATENT_SIZE_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    channels: int
    n_bits: int
    latent_size: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ..., n_bits: _Optional[int] = ..., latent_size: _Optional[int] = ...) -> None: ...

class Preparation(_message.Message):
    __slots__ = ("filter", "background", "fit", "bits_used")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    BITS_USED_FIELD_NUMBER: _ClassVar[int]
    filter: str
    background: int
    fit: str
    bits_used: int
    def __init__(self, filter: _Optional[str] = ..., background: _Optional[int] = ..., fit: _Optional[str] = ..., bits_used: _Optional[int] = ...) -> None: ...

class Flow(_message.Message):
    __slots__ = ("levels", "steps_per_level", "width", "coupling", "parametrization", "parameters", "dequantization", "coupling_actnorm", "precision", "preprocessing", "coupling_scale", "checkerboards", "classes")
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_LEVEL_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    COUPLING_FIELD_NUMBER: _ClassVar[int]
    PARAMETRIZATION_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DEQUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    COUPLING_ACTNORM_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    PREPROCESSING_FIELD_NUMBER: _ClassVar[int]
    COUPLING_SCALE_FIELD_NUMBER: _ClassVar[int]
    CHECKERBOARDS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    levels: int
    steps_per_level: int
    width: int
    coupling: str
    parametrization: str
    parameters: int
    dequantization: str
    coupling_actnorm: bool
    precision: str
    preprocessing: str
    coupling_scale: str
    checkerboards: int
    classes: _containers.RepeatedCompositeFieldContainer[ImageClass]
    def __init__(self, levels: _Optional[int] = ..., steps_per_level: _Optional[int] = ..., width: _Optional[int] = ..., coupling: _Optional[str] = ..., parametrization: _Optional[str] = ..., parameters: _Optional[int] = ..., dequantization: _Optional[str] = ..., coupling_actnorm: bool = ..., precision: _Optional[str] = ..., preprocessing: _Optional[str] = ..., coupling_scale: _Optional[str] = ..., checkerboards: _Optional[int] = ..., classes: _Optional[_Iterable[_Union[ImageClass, _Mapping]]] = ...) -> None: ...

class ImageClass(_message.Message):
    __slots__ = ("name", "share")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    name: str
    share: float
    def __init__(self, name: _Optional[str] = ..., share: _Optional[float] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("name", "sha256", "size", "nodes", "operations")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    size: int
    nodes: int
    operations: int
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., size: _Optional[int] = ..., nodes: _Optional[int] = ..., operations: _Optional[int] = ...) -> None: ...

class Training(_message.Message):
    __slots__ = ("data", "steps", "images_seen", "seed", "split_seed", "metrics", "implementation")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DATA_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_SEEN_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SPLIT_SEED_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    IMPLEMENTATION_FIELD_NUMBER: _ClassVar[int]
    data: str
    steps: int
    images_seen: int
    seed: int
    split_seed: int
    metrics: _containers.ScalarMap[str, float]
    implementation: str
    def __init__(self, data: _Optional[str] = ..., steps: _Optional[int] = ..., images_seen: _Optional[int] = ..., seed: _Optional[int] = ..., split_seed: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., implementation: _Optional[str] = ...) -> None: ...

class Verification(_message.Message):
    __slots__ = ("checks", "images", "steps", "unseen", "device")
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    UNSEEN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    checks: _containers.RepeatedCompositeFieldContainer[Check]
    images: int
    steps: _containers.RepeatedCompositeFieldContainer[StepProof]
    unseen: _containers.RepeatedCompositeFieldContainer[UnseenProof]
    device: str
    def __init__(self, checks: _Optional[_Iterable[_Union[Check, _Mapping]]] = ..., images: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[StepProof, _Mapping]]] = ..., unseen: _Optional[_Iterable[_Union[UnseenProof, _Mapping]]] = ..., device: _Optional[str] = ...) -> None: ...

class StepProof(_message.Message):
    __slots__ = ("step", "condition_number", "residual")
    STEP_FIELD_NUMBER: _ClassVar[int]
    CONDITION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    RESIDUAL_FIELD_NUMBER: _ClassVar[int]
    step: str
    condition_number: float
    residual: float
    def __init__(self, step: _Optional[str] = ..., condition_number: _Optional[float] = ..., residual: _Optional[float] = ...) -> None: ...

class UnseenProof(_message.Message):
    __slots__ = ("kind", "images", "finite", "returned")
    KIND_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    FINITE_FIELD_NUMBER: _ClassVar[int]
    RETURNED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    images: int
    finite: int
    returned: int
    def __init__(self, kind: _Optional[str] = ..., images: _Optional[int] = ..., finite: _Optional[int] = ..., returned: _Optional[int] = ...) -> None: ...

class Canary(_message.Message):
    __slots__ = ("seed", "temperature", "image", "log_likelihood")
    SEED_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LOG_LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    seed: int
    temperature: float
    image: bytes
    log_likelihood: float
    def __init__(self, seed: _Optional[int] = ..., temperature: _Optional[float] = ..., image: _Optional[bytes] = ..., log_likelihood: _Optional[float] = ...) -> None: ...

class Check(_message.Message):
    __slots__ = ("name", "value", "bound", "layer", "images")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    bound: float
    layer: str
    images: int
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., bound: _Optional[float] = ..., layer: _Optional[str] = ..., images: _Optional[int] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("bits_per_dim", "data")
    BITS_PER_DIM_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    bits_per_dim: _containers.RepeatedScalarFieldContainer[float]
    data: str
    def __init__(self, bits_per_dim: _Optional[_Iterable[float]] = ..., data: _Optional[str] = ...) -> None: ...
