"""What the Open Inference Protocol says of a model: its tensors, its configuration, its statistics."""

from __future__ import annotations

from glowserve.oip import grpc_service_pb2 as pb
from glowserve.oip import model_config_pb2
from glowserve_service.config import ServiceConfig
from glowserve_service.front.open_inference.tensors import Tensor
from glowserve_service.front.open_inference.views import View
from glowserve_service.observability.statistics import Duration, InferenceStatistics

PLATFORM, _BACKEND = "onnxruntime_onnx", "onnxruntime"


def model_config(view: View, config: ServiceConfig) -> model_config_pb2.ModelConfig:
    """How a model is configured, as ModelConfig answers."""
    return model_config_pb2.ModelConfig(
        name=view.name,
        platform=PLATFORM,
        backend=_BACKEND,
        max_batch_size=config.max_images_per_call,
        input=[
            model_config_pb2.ModelInput(
                name=tensor.name,
                data_type=f"TYPE_{tensor.datatype}",
                dims=tensor.row,
                format=model_config_pb2.ModelInput.FORMAT_NHWC if tensor.name == "image" else None,
            )
            for tensor in view.inputs
        ],
        output=[
            model_config_pb2.ModelOutput(
                name=tensor.name, data_type=f"TYPE_{tensor.datatype}", dims=tensor.row
            )
            for tensor in view.outputs
        ],
        dynamic_batching=model_config_pb2.ModelDynamicBatching(
            preferred_batch_size=[config.max_batch_size],
            max_queue_delay_microseconds=round(1000 * config.max_queue_delay_ms),
            default_queue_policy=model_config_pb2.ModelQueuePolicy(max_queue_size=config.max_queue_size),
        ),
    )


def tensor_metadata(tensor: Tensor) -> pb.ModelMetadataResponse.TensorMetadata:
    """An input or output, as ModelMetadata answers."""
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=(-1, *tensor.row)
    )


def statistics(view: View, counts: InferenceStatistics) -> pb.ModelStatistics:
    """What a model has done, as ModelStatistics answers."""
    return pb.ModelStatistics(
        name=view.name,
        version=view.version,
        last_inference=round(1000 * counts.last_run),
        inference_count=counts.images,
        execution_count=sum(batches.run.count for batches in counts.batches.values()),
        inference_stats=pb.InferStatistics(
            success=_duration(counts.success),
            fail=_duration(counts.fail),
            queue=_duration(counts.queue),
            compute_input=_duration(counts.compute.join),
            compute_infer=_duration(counts.compute.run),
            compute_output=_duration(counts.compute.split),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(batches.join),
                compute_infer=_duration(batches.run),
                compute_output=_duration(batches.split),
            )
            for size, batches in sorted(counts.batches.items())
        ],
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=round(1e9 * duration.seconds))
