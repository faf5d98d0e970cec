compiler: str
torch_version: str
cpu_libraries: list[str]
cuda_architectures: list[str]
pointwise_losses: list[str]
softmax_losses: list[str]
