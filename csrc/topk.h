// Whether bytes are a topk payload, and where its blocks lie; the twin of `check` in
// fedcore/kernels/reference_topk.py, which says what a payload looks like.
//
// Rules:
//  - What this let through the kernels read without a look: so everything that a payload says of itself is checked
//    here, once, before anything is written.
//  - A set of positions and values has one payload. Anything else that could be read as the same is refused.
//  - Knows nothing of Python and needs no GIL. Errors are std::invalid_argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "buffer.h"

namespace fedmq {

// The bytes of the block that begins at `data`, of which `size` are here: of its head where that is cut off, else of
// all of it. Never more than kTopkBlockMost.
std::size_t topk_block_size(const std::byte* data, std::size_t size);

// Where each block of a payload begins, and where the last one ends.
struct TopkBlocks {
    std::vector<std::uint64_t> starts;
    std::size_t n = 0;  // values, most of them zero
};

// `from`: how many blocks came before these, for messages.
TopkBlocks topk_blocks(const std::byte* data, std::size_t size, const std::string& name, std::size_t from = 0);

}  // namespace fedmq
