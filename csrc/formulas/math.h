// The functions that formulas are written in, for one float or double at a time. cpu/vec_math.h has the same functions
// for a register of them. It must be included before any formula: a vector type belongs to no namespace, so a template
// finds only those overloads for it that were declared before the template.
#pragma once

#include <cmath>

#include "../host_device.h"

#define FUSED_LOSSES_WORD \
  template <class T>      \
  FUSED_LOSSES_HOST_DEVICE inline

namespace fused_losses {

// The type of one lane of T: T itself here, the element of a vector in vec_math.h.
template <class T>
struct Lane {
  using type = T;
};

FUSED_LOSSES_WORD T splat(double value) { return static_cast<T>(value); }

FUSED_LOSSES_HOST_DEVICE inline float select(bool mask, float a, float b) { return mask ? a : b; }
FUSED_LOSSES_HOST_DEVICE inline double select(bool mask, double a, double b) { return mask ? a : b; }

FUSED_LOSSES_HOST_DEVICE inline float abs(float x) { return std::fabs(x); }
FUSED_LOSSES_HOST_DEVICE inline double abs(double x) { return std::fabs(x); }
FUSED_LOSSES_HOST_DEVICE inline float exp(float x) { return std::exp(x); }
FUSED_LOSSES_HOST_DEVICE inline double exp(double x) { return std::exp(x); }
FUSED_LOSSES_HOST_DEVICE inline float log(float x) { return std::log(x); }
FUSED_LOSSES_HOST_DEVICE inline double log(double x) { return std::log(x); }
FUSED_LOSSES_HOST_DEVICE inline float log1p(float x) { return std::log1p(x); }
FUSED_LOSSES_HOST_DEVICE inline double log1p(double x) { return std::log1p(x); }

FUSED_LOSSES_HOST_DEVICE inline float tanh(float x) { return std::tanh(x); }
FUSED_LOSSES_HOST_DEVICE inline double tanh(double x) { return std::tanh(x); }

FUSED_LOSSES_HOST_DEVICE inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
FUSED_LOSSES_HOST_DEVICE inline double multiply_add(double a, double b, double c) { return std::fma(a, b, c); }
FUSED_LOSSES_HOST_DEVICE inline float pow(float x, double p) { return static_cast<float>(std::pow(x, p)); }
FUSED_LOSSES_HOST_DEVICE inline double pow(double x, double p) { return std::pow(x, p); }

// What softmax and sigmoids need, and what a vector computes faster than the general functions: e^x for x < 88,
// log(1 + x) for x in [0, 1], and 1 / x for x in [1, 2].
FUSED_LOSSES_HOST_DEVICE inline float exp_below_88(float x) { return std::exp(x); }
FUSED_LOSSES_HOST_DEVICE inline double exp_below_88(double x) { return std::exp(x); }
FUSED_LOSSES_HOST_DEVICE inline float log1p_of_unit(float x) { return std::log1p(x); }
FUSED_LOSSES_HOST_DEVICE inline double log1p_of_unit(double x) { return std::log1p(x); }
FUSED_LOSSES_HOST_DEVICE inline float reciprocal_of_one_to_two(float x) { return 1 / x; }
FUSED_LOSSES_HOST_DEVICE inline double reciprocal_of_one_to_two(double x) { return 1 / x; }

}  // namespace fused_losses
