#include "stages.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <vector>

#include "attention_plan.h"
#include "memory.h"

namespace octavo {
namespace {

constexpr int pieces_of_thread = 8;  // of attention, so that threads end together

template <class OneRow>
void each_row(std::int64_t rows, Pool& pool, OneRow one_row) {
    pool.run([&](int part, int parts) {
        const Range mine = share_of(rows, part, parts);
        for (std::int64_t row = mine.begin; row < mine.end; ++row) one_row(row);
    });
}

}  // namespace

void normalize_rows(const float* inputs, std::int64_t rows, std::int64_t width, Norm norm, float* outputs, Pool& pool,
                    Isa isa) {
    const VectorKernels& kernels = vector_kernels(isa);
    each_row(rows, pool,
             [&](std::int64_t row) { kernels.normalize(inputs + row * width, width, norm, outputs + row * width); });
}

void gate_rows(const float* inputs, std::int64_t rows, std::int64_t width, float* outputs, Pool& pool, Isa isa) {
    const VectorKernels& kernels = vector_kernels(isa);
    each_row(rows, pool, [&](std::int64_t row) {
        const float* gates = inputs + row * 2 * width;
        kernels.gate(gates, gates + width, width, outputs + row * width);
    });
}

void attend_rows(const float* inputs, const Step& step, const HeadShape& shape, Norm query_norm, Norm key_norm,
                 float* outputs, Pool& pool, Isa isa) {
    if (step.half_head() * 2 != shape.head_dim) throw std::invalid_argument("the angles are of other heads");
    const VectorKernels& kernels = vector_kernels(isa);
    const std::int64_t query_width = shape.heads * shape.head_dim, key_width = shape.kv_heads * shape.head_dim;
    const std::int64_t width = query_width + 2 * key_width, rows = step.rows();
    Buffer<float> keys(step.slots() * key_width), values(step.slots() * key_width);
    const Attention attention{shape,
                              query_norm,
                              key_norm,
                              0,
                              {inputs, width},
                              {inputs + query_width, width},
                              {inputs + query_width + key_width, width},
                              keys.data(),
                              values.data(),
                              {1, step.slots()},
                              step.positions(),
                              step.write_slots(),
                              step.cosine(),
                              step.sine(),
                              step.page_size()};
    pool.run([&](int part, int parts) {
        kernels.write_cache(attention, share_of(rows, part, parts), {0, shape.kv_heads});
    });
    const AttentionPlan plan = plan_by_rows(attention, step, {0, rows}, pieces_of_thread * pool.threads());
    const std::int64_t workspace = attention_workspace(shape, plan.most_lines);
    Buffer<float> workspaces(workspace * pool.threads());
    std::atomic<std::size_t> next_work{0};
    pool.run([&](int part, int) {
        float* own = workspaces.data() + workspace * part;
        for (std::size_t next = next_work++; next < plan.work.size(); next = next_work++) {
            kernels.attend(attention, plan.work[next].task, own, {outputs, query_width});
        }
    });
}

}  // namespace octavo
