// Every loss that has a formula of its own: the lists that engines instantiate and that registration walks.
#pragma once

#include "binary.h"
#include "class_margin.h"
#include "cross_entropy.h"
#include "focal.h"
#include "likelihood.h"
#include "margin.h"
#include "regression.h"
#include "vectors.h"

#define FUSED_LOSSES_POINTWISE(X) \
  FUSED_LOSSES_REGRESSION(X)      \
  FUSED_LOSSES_BINARY(X)          \
  FUSED_LOSSES_FOCAL(X)           \
  FUSED_LOSSES_LIKELIHOOD(X)      \
  FUSED_LOSSES_MARGIN(X)
