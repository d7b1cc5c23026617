#include "step.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "rotation.h"

namespace octavo {
namespace {

void require(bool holds, const std::string& otherwise) {
    if (!holds) throw std::invalid_argument(otherwise);
}

}  // namespace

Step::Step(const StepArrays& arrays)
    : half_head_(arrays.half_head),
      pages_(arrays.pages),
      page_size_(arrays.page_size),
      positions_(static_cast<std::size_t>(arrays.rows)),
      write_slots_(arrays.write_slots, arrays.write_slots + arrays.rows),
      page_slots_(static_cast<std::size_t>(arrays.sequences * arrays.pages)),
      cosine_(arrays.rows * arrays.half_head),
      sine_(arrays.rows * arrays.half_head) {
    require(page_size_ > 0, "a page must have at least one slot");
    require(arrays.row_starts[0] == 0 && arrays.row_starts[arrays.sequences] == arrays.rows,
            "the sequences must own all rows of the call");
    for (std::int64_t index = 0; index < arrays.sequences; ++index) add_sequence(arrays, index);
    const std::int64_t angles = arrays.rows * half_head_;
    cosines_and_sines(arrays.angles, angles, cosine_.data(), sine_.data());
    for (std::int64_t i = 0; i < angles; ++i) {
        cosine_[i] *= arrays.temperature;
        sine_[i] *= arrays.temperature;
    }
}

void Step::add_sequence(const StepArrays& arrays, std::int64_t index) {
    const std::int64_t first_row = arrays.row_starts[index], end_row = arrays.row_starts[index + 1];
    const std::int64_t length = arrays.lengths[index], rows = end_row - first_row;
    require(first_row >= 0 && rows >= 0 && end_row <= arrays.rows, "the row starts must rise");
    require(rows <= length, "a sequence cannot be shorter than its new rows");
    sequences_.push_back({first_row, rows, length});
    if (rows == 0) return;
    const std::int64_t used_pages = (length - 1) / page_size_ + 1;
    require(used_pages <= pages_, "a sequence is longer than its pages");
    constexpr std::int64_t most_slots = std::int64_t{1} << 48;  // what no memory holds, and products do not overflow
    for (std::int64_t page = 0; page < used_pages; ++page) {
        const std::int64_t number = arrays.page_table[index * pages_ + page];
        require(number >= 0 && page_size_ < most_slots && number < most_slots / page_size_,
                "the page table names a page that cannot be");
        const std::int64_t used = std::min(page_size_, length - page * page_size_);
        page_slots_[static_cast<std::size_t>(index * pages_ + page)] = number * page_size_;
        slots_ = std::max(slots_, number * page_size_ + used);
    }
    for (std::int64_t row = first_row; row < end_row; ++row) {
        const std::int64_t position = length - (end_row - row);
        require(write_slots_[static_cast<std::size_t>(row)] ==
                    page_slots(index)[position / page_size_] + position % page_size_,
                "a row must be written where the page table looks for its position");
        positions_[static_cast<std::size_t>(row)] = position;
    }
}

}  // namespace octavo
