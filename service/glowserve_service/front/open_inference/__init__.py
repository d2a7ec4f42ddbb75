"""The Open Inference Protocol, for the same models. protos/glowserve/oip/grpc_service.proto says what it promises."""
