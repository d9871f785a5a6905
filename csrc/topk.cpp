#include "topk.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace fedmq {
namespace {

struct Head {
    std::uint16_t span, count, gap_bytes;
};

Head head_of(const std::byte* data) {
    Head head;
    static_assert(sizeof head == kTopkHeadBytes, "three uint16, one after the other");
    std::memcpy(&head, data, sizeof head);
    return head;
}

std::size_t size_of(const Head& head) {
    return kTopkHeadBytes + head.gap_bytes + kTopkValueBytes * std::size_t{head.count};
}

bool plausible(const Head& head) {
    return head.span >= 1 && head.span <= kTopkBlock && head.count <= head.span && head.gap_bytes >= head.count &&
           head.gap_bytes <= 2 * head.count;
}

// Whether `size` bytes are the gaps before `count` ascending positions below `span`, each in its shortest form.
bool ascending(const std::uint8_t* gaps, std::size_t size, std::size_t count, std::size_t span) {
    const std::uint8_t* const end = gaps + size;
    std::size_t next = 0;
    for (std::size_t i = 0; i < count; ++i) {
        if (gaps == end) return false;
        std::size_t gap = *gaps++;
        if (gap >= 0x80) {
            if (gaps == end || *gaps == 0 || *gaps >= 0x80) return false;
            gap = (gap & 0x7f) | std::size_t{*gaps++} << 7;
        }
        next += gap + 1;
        if (next > span) return false;
    }
    return gaps == end;
}

// A loop of our own: a template of std would forget that u16u may lie anywhere.
bool holds_zero(const u16u* halves, std::size_t count) {
    bool found = false;
    for (std::size_t i = 0; i < count; ++i) found |= (halves[i] & 0x7fff) == 0;
    return found;
}

}  // namespace

std::size_t topk_block_size(const std::byte* data, std::size_t size) {
    return size < kTopkHeadBytes ? kTopkHeadBytes : std::min(size_of(head_of(data)), kTopkBlockMost);
}

TopkBlocks topk_blocks(const std::byte* data, std::size_t size, const std::string& name, std::size_t from) {
    TopkBlocks found;
    found.starts.push_back(0);
    for (std::size_t at = 0; at < size;) {
        const std::string block = ": block " + std::to_string(from + found.starts.size() - 1) + " of a topk payload ";
        const auto refuse = [&](const std::string& why) { throw std::invalid_argument(name + block + why); };
        if (size - at < kTopkHeadBytes) refuse("ends inside its head");
        const Head head = head_of(data + at);
        if (!plausible(head)) {
            refuse("cannot be of " + std::to_string(head.span) + " values, " + std::to_string(head.count) +
                   " of them not zero, with gaps in " + std::to_string(head.gap_bytes) + " bytes");
        }
        const std::size_t bytes = size_of(head);
        if (size - at < bytes) refuse("is cut off");
        if (head.span < kTopkBlock && size - at > bytes) {
            refuse("is of " + std::to_string(head.span) + " values, and not the last one");
        }
        const std::uint8_t* const gaps = reinterpret_cast<const std::uint8_t*>(data + at + kTopkHeadBytes);
        if (!ascending(gaps, head.gap_bytes, head.count, head.span)) {
            refuse("must hold ascending positions below " + std::to_string(head.span) +
                   ", their gaps in the shortest form");
        }
        if (holds_zero(reinterpret_cast<const u16u*>(gaps + head.gap_bytes), head.count)) {
            refuse("must not hold a zero");
        }
        found.n += head.span;
        found.starts.push_back(at += bytes);
    }
    return found;
}

}  // namespace fedmq
