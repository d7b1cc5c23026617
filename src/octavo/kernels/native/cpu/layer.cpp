#include "layer.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace octavo {
namespace {

void require(bool holds, const std::string& otherwise) {
    if (!holds) throw std::invalid_argument(otherwise);
}

Buffer<float> copy_of(const float* values, std::int64_t size) {
    if (values == nullptr) return {};
    Buffer<float> copy(size);
    std::copy(values, values + size, copy.data());
    return copy;
}

HeadShape shape_of(const LayerParts& parts) {
    const std::int64_t dim = parts.head_dim;
    require(dim > 0 && dim % 2 == 0, "the size of a head must be even");
    require(parts.query->outputs % dim == 0 && parts.key->outputs % dim == 0, "queries and keys must be whole heads");
    const HeadShape shape{parts.query->outputs / dim, parts.key->outputs / dim, dim, parts.window};
    require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, "each key must serve the same number of heads");
    require(parts.window >= 0, "a window cannot be negative");
    return shape;
}

}  // namespace

Products::Products(std::vector<SharedMatrix> matrices) : matrices_(std::move(matrices)) {
    for (const SharedMatrix& matrix : matrices_) {
        require(matrix->form.columns == columns(), "matrices that read the same rows must have as many columns");
        first_panel_.push_back(panels_);
        panels_ += matrix->panels();
        const auto same = [&](const InputForm* form) { return *form == matrix->form; };
        const auto found = std::find_if(forms_.begin(), forms_.end(), same);
        form_of_.push_back(static_cast<std::size_t>(found - forms_.begin()));
        if (found == forms_.end()) forms_.push_back(&matrix->form);
    }
}

void Products::multiply(const MatrixKernels& kernels, const std::vector<Encoded>& inputs, Range rows, Range panels,
                        RowsAt<float> outputs) const {
    for (std::size_t i = 0; i < matrices_.size(); ++i) {
        const std::int64_t first = first_panel_[i];
        const Range own{std::max(panels.begin - first, std::int64_t{0}),
                        std::min(panels.end - first, matrices_[i]->panels())};
        if (own.begin >= own.end) continue;
        kernels.multiply(*matrices_[i], inputs[form_of_[i]], rows, own,
                         {outputs.first + first_output(i), outputs.stride});
    }
}

Layer::Layer(const LayerParts& parts)
    : shape(shape_of(parts)),
      norm_epsilon(parts.norm_epsilon),
      attention_norm(copy_of(parts.attention_norm, parts.query->form.columns)),
      mlp_norm(copy_of(parts.mlp_norm, parts.gate->form.columns)),
      query_norm(copy_of(parts.query_norm, parts.head_dim)),
      key_norm(copy_of(parts.key_norm, parts.head_dim)),
      inputs({parts.query, parts.key, parts.value}),
      output({parts.output}),
      gates({parts.gate, parts.up}),
      down({parts.down}) {
    const std::int64_t hidden = hidden_size();
    require(parts.value->outputs == parts.key->outputs, "a layer must have as many values as keys");
    require(output.columns() == parts.query->outputs && parts.output->outputs == hidden,
            "the output projection must lead from the heads back to the hidden size");
    require(gates.columns() == hidden && parts.gate->outputs == parts.up->outputs,
            "gate and up must lead from the hidden size to one width");
    require(down.columns() == parts.gate->outputs && parts.down->outputs == hidden,
            "down must lead from the width of gate back to the hidden size");
}

Head::Head(const float* weight, float epsilon, SharedMatrix matrix)
    : norm_epsilon(epsilon), norm(copy_of(weight, matrix->form.columns)), projection({std::move(matrix)}) {}

}  // namespace octavo
