// What operators say of a call that they do not take: which argument, what it must be, and what it is.
//
// The dispatcher calls kernels with whatever it is given, so each argument is checked once, between the tensors and the
// engines: in checked_view.h what concerns a tensor's memory, in loss_operators.h what all losses share, in *_call.h
// what a family demands. Engines check nothing.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>

namespace fused_losses {

// A call that has no answer. `named` puts the loss's name before its words.
struct Refusal : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn, gnu::cold]] inline void refuse(const std::string& argument, const std::string& expected,
                                           const std::string& found) {
  throw Refusal(argument + " must " + expected + ", but " + found);
}

// Torch's words, by which programs that look for the largest batch know that there is no more memory.
inline constexpr const char* kNoMemory = "DefaultCPUAllocator: can't allocate memory";

// Runs an operator's body, under the name that its errors begin with.
template <class Body>
auto named(const char* name, const Body& body) {
  try {
    return body();
  } catch (const Refusal& refusal) {
    throw std::runtime_error(std::string(name) + ": " + refusal.what());
  } catch (const std::bad_alloc&) {
    throw std::runtime_error(std::string(name) + ": " + kNoMemory);
  }
}

// A name as an argument of a template.
template <size_t length>
struct Name {
  char text[length];

  constexpr Name(const char (&characters)[length]) {
    for (size_t i = 0; i < length; ++i) text[i] = characters[i];
  }
};

// As Python writes a shape: "(6, 10)", "(6,)", "()".
inline std::string text_of(int dims, const int64_t* sizes) {
  std::string text = "(";
  for (int d = 0; d < dims; ++d) text += (d ? ", " : "") + std::to_string(sizes[d]);
  return text + (dims == 1 ? ",)" : ")");
}

// As torch's Python names a dtype.
inline std::string text_of(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Bool: return "bool";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    default: return torch::headeronly::toString(dtype);
  }
}

}  // namespace fused_losses
