// The run of a layer and of the head: each thread takes its part of every stage, and they meet between the stages.
//
// A thread has its own range of outputs of each product. What leads from one product to the next, row by row, is
// shared out by rows where there are many; few rows each thread prepares for itself, which is less than a wait.
// Neither changes what is computed.
#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_plan.h"
#include "barrier.h"
#include "layer.h"

namespace octavo {
namespace {

constexpr std::int64_t few_rows = 8;
// A longer call goes through in chunks, which stay in the caches from stage to stage.
constexpr std::int64_t chunk_rows = 128;
constexpr int pieces_of_thread = 4;  // of attention, so that threads end together

// Rows encoded for the products of a layer.
struct EncodedInputs {
    std::vector<Encoded> inputs, output, gates, down;
};

// What one thread keeps to itself.
struct OwnScratch {
    EncodedInputs encoded;
    Buffer<float> row, attended, workspace;
};

struct Scratch {
    EncodedInputs encoded;
    Buffer<float> products, attended, middle, gates, gated, block_sums;
    std::vector<OwnScratch> own;
};

// Kept by the calling thread from layer to layer, so that it stays in the caches.
Scratch& kept_scratch(int threads) {
    static thread_local Scratch scratch;
    if (scratch.own.size() < static_cast<std::size_t>(threads)) scratch.own.resize(static_cast<std::size_t>(threads));
    return scratch;
}

void make_room(const Products& products, std::int64_t rows, std::vector<Encoded>& encoded) {
    const auto& forms = products.forms();
    if (encoded.size() < forms.size()) encoded.resize(forms.size());
    for (std::size_t form = 0; form < forms.size(); ++form) encoded[form].resize(*forms[form], rows);
}

void make_room(const Layer& layer, std::int64_t rows, EncodedInputs& encoded) {
    make_room(layer.inputs, rows, encoded.inputs);
    make_room(layer.output, rows, encoded.output);
    make_room(layer.gates, rows, encoded.gates);
    make_room(layer.down, rows, encoded.down);
}

RowsAt<float> make_room(std::int64_t rows, std::int64_t width, Buffer<float>& buffer) {
    buffer.grow(rows * width);
    return {buffer.data(), width};
}

template <class Value>
RowsAt<Value> from_row(RowsAt<Value> rows, std::int64_t first) {
    return {rows[first], rows.stride};
}

RowsAt<const float> read_only(RowsAt<float> rows) { return {rows.first, rows.stride}; }

void encode(const MatrixKernels& kernels, const Products& products, RowsAt<const float> inputs, Range rows,
            std::vector<Encoded>& encoded) {
    for (std::size_t form = 0; form < products.forms().size(); ++form) {
        kernels.encode(*products.forms()[form], inputs, rows, encoded[form]);
    }
}

// What the threads of a run compute with.
struct Kernels {
    const MatrixKernels& matrix;
    const VectorKernels& vector;

    explicit Kernels(Isa isa) : matrix(matrix_kernels(isa)), vector(vector_kernels(isa)) {}

    // Rows, normalized one by one in `row`, and encoded.
    void normalize_and_encode(Norm norm, const Products& products, RowsAt<const float> inputs, Range rows, float* row,
                              std::vector<Encoded>& encoded) const {
        for (std::int64_t r = rows.begin; r < rows.end; ++r) {
            vector.normalize(inputs[r], products.columns(), norm, row);
            encode(matrix, products, {row, 0}, {r, r + 1}, encoded);
        }
    }
};

Attention attention_of(const Layer& layer, const Step& step, Cache cache, std::int64_t first_row,
                       RowsAt<float> products) {
    const auto part = [&](std::size_t i) {
        return RowsAt<const float>{products.first + layer.inputs.first_output(i), products.stride};
    };
    const Norm query_norm{layer.query_norm.data(), layer.norm_epsilon};
    const Norm key_norm{layer.key_norm.data(), layer.norm_epsilon};
    return {layer.shape,
            query_norm,
            key_norm,
            first_row,
            part(0),
            part(1),
            part(2),
            cache.keys,
            cache.values,
            cache.places,
            step.positions(),
            step.write_slots(),
            step.cosine(),
            step.sine(),
            step.page_size()};
}

// Some rows on their way through a layer; they are counted from the first of them.
class Chunk {
public:
    Chunk(const Layer& layer, const Step& step, Cache cache, Range rows, int threads, Isa isa);

    // One thread's part of all stages.
    void run(int part, int parts, RowsAt<const float> hidden, RowsAt<float> outputs);

private:
    // A thread in a run, and the rows that it prepares for the products.
    struct Worker {
        int part, parts;
        Range rows;
        OwnScratch& own;
        EncodedInputs& encoded;
    };

    void attend(const Worker& worker);
    void attend_block(const AttentionWork& work, float* workspace);
    void encode_attended(const Worker& worker);
    void multiply_gates(const Worker& worker);
    void multiply_and_add(const Worker& worker, const Products& products, const std::vector<Encoded>& encoded,
                          RowsAt<const float> residual, RowsAt<float> outputs);
    void meet_if_shared() {
        if (!few_) barrier_.wait();
    }

    const Layer& layer_;
    const Range all_;
    const bool few_;
    const Kernels kernels_;
    Scratch& scratch_;
    const RowsAt<float> products_, attended_, middle_, gates_, gated_;
    const Attention attention_;
    const AttentionPlan plan_;
    Barrier barrier_;
    std::atomic<std::size_t> next_work_{0};
};

Chunk::Chunk(const Layer& layer, const Step& step, Cache cache, Range rows, int threads, Isa isa)
    : layer_(layer),
      all_{0, rows.size()},
      few_(rows.size() <= few_rows),
      kernels_(isa),
      scratch_(kept_scratch(threads)),
      products_(make_room(rows.size(), layer.inputs.width(), scratch_.products)),
      attended_(make_room(rows.size(), layer.output.columns(), scratch_.attended)),
      middle_(make_room(rows.size(), layer.hidden_size(), scratch_.middle)),
      gates_(make_room(rows.size(), layer.gates.width(), scratch_.gates)),
      gated_(make_room(rows.size(), layer.down.columns(), scratch_.gated)),
      attention_(attention_of(layer, step, cache, rows.begin, products_)),
      plan_(few_ ? plan_by_block(attention_, step, rows)
                 : plan_by_rows(attention_, step, rows, pieces_of_thread * threads)),
      barrier_(threads) {
    scratch_.block_sums.grow(plan_.sums);
    const std::int64_t workspace = attention_workspace(layer.shape, plan_.most_lines);
    for (OwnScratch& own : scratch_.own) {
        own.row.grow(layer.hidden_size());
        own.workspace.grow(workspace);
        if (few_) make_room(rows.size(), attended_.stride, own.attended);
        if (few_) make_room(layer, rows.size(), own.encoded);
    }
    if (!few_) make_room(layer, rows.size(), scratch_.encoded);
}

void Chunk::run(int part, int parts, RowsAt<const float> hidden, RowsAt<float> outputs) {
    OwnScratch& own = scratch_.own[static_cast<std::size_t>(part)];
    const Range rows = few_ ? all_ : share_of(all_.size(), part, parts);
    const Worker worker{part, parts, rows, own, few_ ? own.encoded : scratch_.encoded};
    EncodedInputs& encoded = worker.encoded;

    const Norm attention_norm{layer_.attention_norm.data(), layer_.norm_epsilon};
    kernels_.normalize_and_encode(attention_norm, layer_.inputs, hidden, rows, own.row.data(), encoded.inputs);
    meet_if_shared();
    layer_.inputs.multiply(kernels_.matrix, encoded.inputs, all_, share_of(layer_.inputs.panels(), part, parts),
                           products_);
    barrier_.wait();
    attend(worker);
    barrier_.wait();
    encode_attended(worker);
    meet_if_shared();
    multiply_and_add(worker, layer_.output, encoded.output, hidden, middle_);
    barrier_.wait();

    const Norm mlp_norm{layer_.mlp_norm.data(), layer_.norm_epsilon};
    kernels_.normalize_and_encode(mlp_norm, layer_.gates, read_only(middle_), rows, own.row.data(), encoded.gates);
    meet_if_shared();
    multiply_gates(worker);
    barrier_.wait();
    encode(kernels_.matrix, layer_.down, read_only(gated_), rows, encoded.down);
    meet_if_shared();
    multiply_and_add(worker, layer_.down, encoded.down, read_only(middle_), outputs);
}

void Chunk::attend(const Worker& worker) {
    float* workspace = worker.own.workspace.data();
    if (!few_) {
        const std::int64_t first = attention_.first_row;
        kernels_.vector.write_cache(attention_, {first + worker.rows.begin, first + worker.rows.end},
                                    {0, layer_.shape.kv_heads});
        barrier_.wait();
    }
    for (std::size_t next = next_work_++; next < plan_.work.size(); next = next_work_++) {
        const AttentionWork& work = plan_.work[next];
        if (few_) {
            attend_block(work, workspace);
        } else {
            kernels_.vector.attend(attention_, work.task, workspace, attended_);
        }
    }
}

// The new keys of a block are written by the work that reads the block, and by no other.
void Chunk::attend_block(const AttentionWork& work, float* workspace) {
    const auto in_block = [&](std::int64_t row) { return attention_.positions[row] / block_positions == work.block; };
    Range written{work.task.rows.begin, work.task.rows.begin};
    while (written.begin < work.task.rows.end && !in_block(written.begin)) ++written.begin;
    written.end = written.begin;
    while (written.end < work.task.rows.end && in_block(written.end)) ++written.end;
    kernels_.vector.write_cache(attention_, written, {work.task.kv_head, work.task.kv_head + 1});
    kernels_.vector.attend_block(attention_, work.task, work.block, workspace,
                                 {scratch_.block_sums.data() + work.first_sum, work.row_stride});
}

void Chunk::encode_attended(const Worker& worker) {
    if (!few_) {
        encode(kernels_.matrix, layer_.output, read_only(attended_), worker.rows, worker.encoded.output);
        return;
    }
    const HeadShape& shape = layer_.shape;
    const RowsAt<float> attended{worker.own.attended.data(), attended_.stride};
    for (std::int64_t row = 0; row < all_.size(); ++row) {
        const RowSums& sums = plan_.row_sums[static_cast<std::size_t>(row)];
        for (std::int64_t head = 0; head < shape.heads; ++head) {
            const RowsAt<const float> blocks{scratch_.block_sums.data() + sums.first + head * shape.state_size(),
                                             shape.heads * shape.state_size()};
            kernels_.vector.merge_blocks(shape, blocks, sums.count, worker.own.workspace.data(),
                                         attended[row] + head * shape.head_dim);
        }
    }
    encode(kernels_.matrix, layer_.output, read_only(attended), all_, worker.encoded.output);
}

// Each thread has the same range of gate and up, so that it can gate its own.
void Chunk::multiply_gates(const Worker& worker) {
    const std::int64_t panels = layer_.gates.matrix(0).panels(), width = layer_.gates.matrix(0).outputs;
    const Range own = share_of(panels, worker.part, worker.parts);
    layer_.gates.multiply(kernels_.matrix, worker.encoded.gates, all_, own, gates_);
    layer_.gates.multiply(kernels_.matrix, worker.encoded.gates, all_, {panels + own.begin, panels + own.end}, gates_);
    const std::int64_t begin = own.begin * panel_outputs, end = std::min(own.end * panel_outputs, width);
    for (std::int64_t row = 0; row < all_.size(); ++row) {
        const float* gate = gates_[row] + begin;
        kernels_.vector.gate(gate, gate + layer_.gates.first_output(1), end - begin, gated_[row] + begin);
    }
}

// outputs = residual + products, of the thread's own outputs.
void Chunk::multiply_and_add(const Worker& worker, const Products& products, const std::vector<Encoded>& encoded,
                             RowsAt<const float> residual, RowsAt<float> outputs) {
    const Range own = share_of(products.panels(), worker.part, worker.parts);
    products.multiply(kernels_.matrix, encoded, all_, own, outputs);
    const std::int64_t end = std::min(own.end * panel_outputs, products.matrix(0).outputs);
    for (std::int64_t row = 0; row < all_.size(); ++row) {
        for (std::int64_t i = own.begin * panel_outputs; i < end; ++i) outputs[row][i] += residual[row][i];
    }
}

}  // namespace

void run_layer(const Layer& layer, const Step& step, Cache cache, const float* hidden, float* outputs, Pool& pool,
               Isa isa) {
    if (step.half_head() * 2 != layer.shape.head_dim) {
        throw std::invalid_argument("the angles are those of heads of another size");
    }
    if (step.slots() > cache.slots) {
        throw std::invalid_argument("the cache has " + std::to_string(cache.slots) +
                                    " slots, but the page table names slot " + std::to_string(step.slots() - 1));
    }
    const std::int64_t width = layer.hidden_size();
    for (std::int64_t first = 0; first < step.rows(); first += chunk_rows) {
        const Range rows{first, std::min(first + chunk_rows, step.rows())};
        Chunk chunk(layer, step, cache, rows, pool.threads(), isa);
        pool.run([&](int part, int parts) {
            chunk.run(part, parts, {hidden + first * width, width}, {outputs + first * width, width});
        });
    }
}

void run_head(const Head& head, const float* hidden, std::int64_t rows, float* logits, Pool& pool, Isa isa) {
    const Kernels kernels(isa);
    const Norm norm{head.norm.data(), head.norm_epsilon};
    const std::int64_t width = head.hidden_size(), outputs = head.projection.matrix(0).outputs;
    Scratch& scratch = kept_scratch(pool.threads());
    for (OwnScratch& own : scratch.own) own.row.grow(width);
    for (std::int64_t first = 0; first < rows; first += chunk_rows) {
        const Range all{0, std::min(chunk_rows, rows - first)};
        const bool few = all.size() <= few_rows;
        Barrier barrier(pool.threads());
        for (OwnScratch& own : scratch.own) make_room(head.projection, few ? all.size() : 0, own.encoded.inputs);
        make_room(head.projection, all.size(), scratch.encoded.inputs);
        pool.run([&](int part, int parts) {
            OwnScratch& own = scratch.own[static_cast<std::size_t>(part)];
            std::vector<Encoded>& encoded = few ? own.encoded.inputs : scratch.encoded.inputs;
            kernels.normalize_and_encode(norm, head.projection, {hidden + first * width, width},
                                         few ? all : share_of(all.size(), part, parts), own.row.data(), encoded);
            if (!few) barrier.wait();
            head.projection.multiply(kernels.matrix, encoded, all, share_of(head.projection.panels(), part, parts),
                                     {logits + first * outputs, outputs});
        });
    }
}

}  // namespace octavo
