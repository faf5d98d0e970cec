compiler: str
torch_version: str
cpu_libraries: list[str]
cuda_architectures: list[str]
losses: dict[str, list[str]]
