// The engine for losses of vectors, compiled for pairs and the cosine between them.
#include "vectors_engine.cuh"

namespace fused_losses {

void cosine_embedding(const VectorsArguments& arguments, const Scaling& scaling, const Reduced& reduced,
                      const Queue& queue) {
  vectors(CosineEmbedding{arguments.parameters[0]}, arguments, scaling, reduced, queue);
}

}  // namespace fused_losses
