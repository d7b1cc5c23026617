// A whole decoder layer, and the head, as one call each. To the last bit they are their products, as
// docs/decisions/0006-native-library.md defines them, and what vectors.h defines between these.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "matrix.h"
#include "step.h"
#include "vectors.h"

namespace octavo {

using SharedMatrix = std::shared_ptr<const Matrix>;

// Matrices that read the same rows; their outputs lie side by side, each from a multiple of 16 on.
class Products {
public:
    // Throws std::invalid_argument unless all take the same number of columns.
    explicit Products(std::vector<SharedMatrix> matrices);

    std::int64_t columns() const { return matrices_[0]->form.columns; }
    std::int64_t width() const { return panels_ * panel_outputs; }
    std::int64_t panels() const { return panels_; }
    std::int64_t first_output(std::size_t matrix) const { return first_panel_[matrix] * panel_outputs; }
    const Matrix& matrix(std::size_t index) const { return *matrices_[index]; }
    // The ways in which the matrices want their inputs; most often one.
    const std::vector<const InputForm*>& forms() const { return forms_; }

    // Outputs of `panels`, counted over all matrices.
    void multiply(const MatrixKernels& kernels, const std::vector<Encoded>& inputs, Range rows, Range panels,
                  RowsAt<float> outputs) const;

private:
    std::vector<SharedMatrix> matrices_;
    std::vector<std::int64_t> first_panel_;
    std::vector<std::size_t> form_of_;
    std::vector<const InputForm*> forms_;
    std::int64_t panels_ = 0;
};

struct LayerParts {
    const float* attention_norm;  // [hidden_size]
    const float* mlp_norm;        // [hidden_size]
    const float* query_norm;      // [head_dim], or null
    const float* key_norm;        // [head_dim], or null
    SharedMatrix query, key, value, output, gate, up, down;
    std::int64_t head_dim;
    std::int64_t window;  // 0: none
    float norm_epsilon;
};

class Layer {
public:
    // Throws std::invalid_argument where the parts do not fit one another.
    explicit Layer(const LayerParts& parts);

    std::int64_t hidden_size() const { return inputs.columns(); }

    HeadShape shape;
    float norm_epsilon;
    Buffer<float> attention_norm, mlp_norm, query_norm, key_norm;
    Products inputs;  // query, key, value
    Products output;
    Products gates;  // gate, up
    Products down;
};

class Head {
public:
    Head(const float* norm, float norm_epsilon, SharedMatrix projection);

    std::int64_t hidden_size() const { return projection.columns(); }

    float norm_epsilon;
    Buffer<float> norm;
    Products projection;
};

struct Cache {
    CacheMemory keys, values;
    HeadPlaces places;
    std::int64_t slots;
};

// `hidden` and `outputs` [step.rows()][hidden_size] must not overlap. Throws std::invalid_argument where the step
// needs slots that the cache does not have.
void run_layer(const Layer& layer, const Step& step, Cache cache, const float* hidden, float* outputs, Pool& pool,
               Isa isa);

// hidden [rows][hidden_size], logits [rows][outputs of the projection].
void run_head(const Head& head, const float* hidden, std::int64_t rows, float* logits, Pool& pool, Isa isa);

}  // namespace octavo
