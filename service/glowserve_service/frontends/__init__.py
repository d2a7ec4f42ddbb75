"""Processes that accept calls for one engine process: `glowserve serve --frontends N`.

The engine process is the one that was started. It owns the models, the batches, the GPU, the repository, the canaries,
the readiness, the port of metrics and the signals. A front-end is a process that it starts (spawned, never forked). N
of them listen on one port with SO_REUSEPORT: the system gives each connection to one of them. A front-end runs
`front.Front`, as a service without front-ends does: it decodes and checks requests, draws noise, and writes answers.

The front meets the models in two places: `models.model.Models`, which finds a model and runs its rows, and
`front.control.Control`, which lists, loads and unloads models. A front-end has remote implementations of both:

    front-end process                                    engine process
    Front -> CallRunner -> RemoteModel -> EngineLink == FrontendLink -> ServedModel -> Lane -> Batcher
                        -> RemoteControl                               -> ModelControl -> ModelManager

`==` is a Unix socket with small frames (`protocol.py`, `channel.py`: all that a turn of the event loop brings is one
write) and shared memory (`arena.py`). A front-end copies a caller's rows into a block of its memory and names the
block in a frame. The engine process joins batches from there, and copies the results behind the rows. They are freed
when the answer is written.

A front-end holds each model that it was told of. When the model is replaced, it tells the engine process after the
last call that used it. Counts go to the engine process twice a second and before each scrape
(`observability/deltas.py`). Log lines go straight to the common standard error.

If a front-end ends, its own calls end with it, and another takes its place. If the engine process ends, the front-ends
end at once: whatever supervises the service starts it again.
"""
