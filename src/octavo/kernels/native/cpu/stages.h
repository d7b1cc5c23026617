// What lies between the products of a decoder layer, each as a call of its own over many rows: quantization stops a
// layer at every product to solve it. Bit for bit what `run_layer` computes there.
#pragma once

#include <cstdint>

#include "pool.h"
#include "step.h"
#include "vectors.h"

namespace octavo {

// outputs [rows][width] = each row of `inputs` over its root mean square, times the weight.
void normalize_rows(const float* inputs, std::int64_t rows, std::int64_t width, Norm norm, float* outputs, Pool& pool,
                    Isa isa);

// outputs [rows][width] = silu(gates) * ups, where a row of `inputs` is [gates, ups].
void gate_rows(const float* inputs, std::int64_t rows, std::int64_t width, float* outputs, Pool& pool, Isa isa);

// Attention of the sequences of `step`, of which all positions are among its rows. A row of `inputs` is [queries, keys,
// values], before norm and rotation; outputs [rows][heads * head_dim].
void attend_rows(const float* inputs, const Step& step, const HeadShape& shape, Norm query_norm, Norm key_norm,
                 float* outputs, Pool& pool, Isa isa);

}  // namespace octavo
