#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/tokenizer.h"

#include <pcre2.h>

#include <algorithm>
#include <array>
#include <queue>
#include <unordered_map>

#include "common/check.h"

namespace icefield {
namespace {

// Pre-tokenizers by the name GGUF gives them: each pattern cuts the pieces that the one before it
// left, everything between matches is a piece too.
struct PreTokenizer {
  std::string_view name;
  std::vector<const char*> patterns;
  bool whole_pieces = false;  // a piece that is a token is that token, whatever merges make of it
  bool begins = false;        // prompts have a begin token unless the file says otherwise
};

constexpr const char* kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
    R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

const std::array<PreTokenizer, 4>& pre_tokenizers() {
  static const std::array<PreTokenizer, 4> table = {{
      {"gpt-2", {kGpt2Pattern}},
      {"smollm", {R"(\p{N})", kGpt2Pattern}},  // every digit by itself
      {"llama-bpe", {kLlama3Pattern}, true, true},
      {"qwen2", {kQwen2Pattern}},
  }};
  return table;
}

// GPT-2's printable stand-ins: bytes that are printable Latin-1 characters stand for themselves,
// the others for the code points from 256 on.
struct ByteAlphabet {
  std::array<std::string, 256> text;                     // UTF-8 of each byte's stand-in
  std::unordered_map<std::uint32_t, std::uint8_t> byte;  // code point to byte

  ByteAlphabet() {
    std::uint32_t next = 256;
    for (std::uint32_t b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
      const std::uint32_t point = printable ? b : next++;
      byte[point] = static_cast<std::uint8_t>(b);
      std::string& out = text[b];
      if (point < 0x80) {
        out += static_cast<char>(point);
      } else {
        out += static_cast<char>(0xc0 | (point >> 6));
        out += static_cast<char>(0x80 | (point & 0x3f));
      }
    }
  }
};

const ByteAlphabet& alphabet() {
  static const ByteAlphabet table;
  return table;
}

// The bytes that a token's name stands for. Names that are not in the alphabet (control tokens)
// are their own bytes.
std::string bytes_of(std::string_view name) {
  std::string bytes;
  for (std::size_t i = 0; i < name.size();) {
    const auto lead = static_cast<unsigned char>(name[i]);
    std::uint32_t point = lead;
    std::size_t length = 1;
    if (lead >= 0x80) {
      if ((lead & 0xe0) != 0xc0 || i + 1 >= name.size()) return std::string(name);
      point = ((lead & 0x1fu) << 6) | (static_cast<unsigned char>(name[i + 1]) & 0x3fu);
      length = 2;
    }
    const auto found = alphabet().byte.find(point);
    if (found == alphabet().byte.end()) return std::string(name);
    bytes += static_cast<char>(found->second);
    i += length;
  }
  return bytes;
}

struct PatternDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchDeleter {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
using Pattern = std::unique_ptr<pcre2_code, PatternDeleter>;

Pattern compile(const char* pattern) {
  int error = 0;
  PCRE2_SIZE at = 0;
  Pattern code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern), PCRE2_ZERO_TERMINATED,
                             PCRE2_UTF | PCRE2_UCP, &error, &at, nullptr));
  ICE_CHECK(code != nullptr);
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // slower without, but right
  return code;
}

// Appends the matches in `piece` and what stands between them. `piece` must be valid UTF-8.
void cut(const Pattern& pattern, std::string_view piece, std::vector<std::string_view>& out) {
  const std::unique_ptr<pcre2_match_data, MatchDeleter> match(
      pcre2_match_data_create_from_pattern(pattern.get(), nullptr));
  const auto* text = reinterpret_cast<PCRE2_SPTR>(piece.data());
  std::size_t done = 0;
  while (done < piece.size()) {
    const int rc = pcre2_match(pattern.get(), text, piece.size(), done, PCRE2_NO_UTF_CHECK,
                               match.get(), nullptr);
    if (rc < 0) break;
    const PCRE2_SIZE* where = pcre2_get_ovector_pointer(match.get());
    if (where[0] > done) out.push_back(piece.substr(done, where[0] - done));
    if (where[1] == where[0]) break;  // no pattern of ours matches nothing
    out.push_back(piece.substr(where[0], where[1] - where[0]));
    done = where[1];
  }
  if (done < piece.size()) out.push_back(piece.substr(done));
}

// The offset of the first byte that is not part of valid UTF-8, or the size.
std::size_t valid_utf8(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  std::size_t i = 0;
  while (i < text.size()) {
    const unsigned char lead = byte(i);
    const std::size_t length = lead < 0x80   ? 1
                               : lead < 0xc2 ? 0
                               : lead < 0xe0 ? 2
                               : lead < 0xf0 ? 3
                               : lead < 0xf5 ? 4
                                             : 0;
    if (length == 0 || i + length > text.size()) return i;
    for (std::size_t k = 1; k < length; ++k) {
      if ((byte(i + k) & 0xc0) != 0x80) return i;
    }
    if (length == 3 &&
        ((lead == 0xe0 && byte(i + 1) < 0xa0) || (lead == 0xed && byte(i + 1) > 0x9f))) {
      return i;  // overlong, surrogate
    }
    if (length == 4 &&
        ((lead == 0xf0 && byte(i + 1) < 0x90) || (lead == 0xf4 && byte(i + 1) > 0x8f))) {
      return i;  // overlong, beyond U+10FFFF
    }
    i += length;
  }
  return i;
}

struct Merge {
  std::uint32_t rank = 0;
  TokenId result = 0;
};

std::uint64_t pair_key(TokenId left, TokenId right) {
  return (static_cast<std::uint64_t>(left) << 32) | right;
}

constexpr TokenId kNoToken = 0xffffffff;

enum class TokenKind : std::uint8_t { kNormal, kControl, kUserDefined };

}  // namespace

struct Tokenizer::State {
  std::vector<Pattern> patterns;
  std::vector<std::string> bytes;  // of each token
  std::vector<TokenKind> kinds;
  std::unordered_map<std::string_view, TokenId> ids;  // by name; borrows from the file
  std::array<TokenId, 256> byte_tokens{};             // kNoToken: the vocabulary has none
  std::unordered_map<std::uint64_t, Merge> merges;
  std::vector<TokenId> user_defined;  // found in text literally, longest first
  bool whole_pieces = false;
  std::optional<TokenId> begin;

  Status load(const GgufFile& file);
  Status load_merges(std::span<const std::string_view> lines, const std::string& path);
  Status load_begin(const GgufFile& file, bool begins);
  TokenId whole_piece(std::string_view piece) const;
  void encode_piece(std::string_view piece, std::vector<TokenId>& out) const;
  void encode_plain(std::string_view text, std::vector<TokenId>& out) const;
};

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::load(const GgufFile& file) {
  ICE_TRY(const std::string_view model, file.text("tokenizer.ggml.model"));
  if (model != "gpt2") {
    return Status(Code::kUnimplemented, "model " + file.path() + ": tokenizer \"" +
                                            std::string(model) +
                                            "\"; only byte-level BPE (\"gpt2\") is supported");
  }
  auto state = std::make_unique<State>();
  ICE_TRY(state->load(file));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(state)));
}

Status Tokenizer::State::load(const GgufFile& file) {
  std::string_view pre = "gpt-2";
  if (file.has("tokenizer.ggml.pre")) {
    ICE_TRY(pre, file.text("tokenizer.ggml.pre"));
  }
  const auto known = std::find_if(pre_tokenizers().begin(), pre_tokenizers().end(),
                                  [&](const PreTokenizer& entry) { return entry.name == pre; });
  if (known == pre_tokenizers().end()) {
    return Status(Code::kUnimplemented, "model " + file.path() + ": pre-tokenizer \"" +
                                            std::string(pre) +
                                            "\"; supported are gpt-2, smollm, llama-bpe and qwen2");
  }
  for (const char* pattern : known->patterns) patterns.push_back(compile(pattern));
  whole_pieces = known->whole_pieces;

  ICE_TRY(const auto names, file.texts("tokenizer.ggml.tokens"));
  ICE_TRY(const auto types, file.integers("tokenizer.ggml.token_type"));
  ICE_TRY(const auto lines, file.texts("tokenizer.ggml.merges"));
  if (types.size() != names.size()) {
    return Status(Code::kInvalidArgument, "model " + file.path() + ": " +
                                              std::to_string(names.size()) + " tokens, " +
                                              std::to_string(types.size()) + " token types");
  }
  constexpr std::int64_t kControlType = 3;
  constexpr std::int64_t kUserDefinedType = 4;
  for (std::size_t i = 0; i < names.size(); ++i) {
    ids.emplace(names[i], static_cast<TokenId>(i));
    kinds.push_back(types[i] == kControlType       ? TokenKind::kControl
                    : types[i] == kUserDefinedType ? TokenKind::kUserDefined
                                                   : TokenKind::kNormal);
    bytes.push_back(kinds.back() == TokenKind::kNormal ? bytes_of(names[i])
                                                       : std::string(names[i]));
    if (kinds.back() == TokenKind::kUserDefined && !names[i].empty()) {
      user_defined.push_back(static_cast<TokenId>(i));
    }
  }
  std::stable_sort(user_defined.begin(), user_defined.end(),
                   [this](TokenId a, TokenId b) { return bytes[a].size() > bytes[b].size(); });
  for (std::size_t b = 0; b < 256; ++b) {
    const auto found = ids.find(alphabet().text[b]);
    byte_tokens[b] = found == ids.end() ? kNoToken : found->second;
  }
  ICE_TRY(load_begin(file, known->begins));
  return load_merges(lines, file.path());
}

Status Tokenizer::State::load_begin(const GgufFile& file, bool begins) {
  constexpr const char* kAdd = "tokenizer.ggml.add_bos_token";
  constexpr const char* kId = "tokenizer.ggml.bos_token_id";
  if (file.has(kAdd)) {
    ICE_TRY(const std::int64_t add, file.integer(kAdd));
    begins = add != 0;
  } else if (!file.has(kId)) {
    return Status();
  }
  if (!begins) return Status();
  ICE_TRY(const std::int64_t id, file.integer(kId));
  if (id < 0 || id >= static_cast<std::int64_t>(bytes.size())) {
    return Status(Code::kInvalidArgument, "model " + file.path() + ": begin token " +
                                              std::to_string(id) + " of " +
                                              std::to_string(bytes.size()));
  }
  begin = static_cast<TokenId>(id);
  return Status();
}

Status Tokenizer::State::load_merges(std::span<const std::string_view> lines,
                                     const std::string& path) {
  for (std::size_t rank = 0; rank < lines.size(); ++rank) {
    const std::size_t space = lines[rank].find(' ', 1);
    const auto id_of = [&](std::string_view name) {
      const auto found = ids.find(name);
      return found == ids.end() ? static_cast<std::int64_t>(-1)
                                : static_cast<std::int64_t>(found->second);
    };
    std::int64_t left = -1;
    std::int64_t right = -1;
    std::int64_t merged = -1;
    if (space != std::string_view::npos) {
      left = id_of(lines[rank].substr(0, space));
      right = id_of(lines[rank].substr(space + 1));
      std::string both(lines[rank]);
      both.erase(space, 1);
      merged = id_of(both);
    }
    if (left < 0 || right < 0 || merged < 0) {
      return Status(Code::kInvalidArgument, "model " + path + ": merge " + std::to_string(rank) +
                                                " names a token that is not in the vocabulary");
    }
    merges.emplace(pair_key(static_cast<TokenId>(left), static_cast<TokenId>(right)),
                   Merge{static_cast<std::uint32_t>(rank), static_cast<TokenId>(merged)});
  }
  return Status();
}

// The token that stands for all of the piece, or kNoToken.
TokenId Tokenizer::State::whole_piece(std::string_view piece) const {
  std::string name;
  for (const char byte : piece) name += alphabet().text[static_cast<unsigned char>(byte)];
  const auto found = ids.find(name);
  const bool known = found != ids.end() && kinds[found->second] == TokenKind::kNormal;
  return known ? found->second : kNoToken;
}

// Lowest rank first, the leftmost of equals: a heap over the neighbours that can merge.
void Tokenizer::State::encode_piece(std::string_view piece, std::vector<TokenId>& out) const {
  struct Symbol {
    TokenId token;
    std::int32_t previous, next;  // -1: none
    bool alive = true;
  };
  struct Candidate {
    std::uint32_t rank;
    std::int32_t left, right;
    TokenId left_token, right_token, result;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::vector<Symbol> symbols;
  for (const char byte : piece) {
    const TokenId token = byte_tokens[static_cast<unsigned char>(byte)];
    const auto at = static_cast<std::int32_t>(symbols.size());
    if (token != kNoToken) symbols.push_back({token, at - 1, at + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;
  const auto size = static_cast<std::int32_t>(symbols.size());
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](std::int32_t left, std::int32_t right) {
    if (left < 0 || right < 0) return;
    const TokenId a = symbols[static_cast<std::size_t>(left)].token;
    const TokenId b = symbols[static_cast<std::size_t>(right)].token;
    const auto found = merges.find(pair_key(a, b));
    if (found != merges.end()) {
      queue.push({found->second.rank, left, right, a, b, found->second.result});
    }
  };
  for (std::int32_t i = 0; i + 1 < size; ++i) offer(i, i + 1);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[static_cast<std::size_t>(best.left)];
    Symbol& right = symbols[static_cast<std::size_t>(best.right)];
    const bool stale = !left.alive || !right.alive || left.next != best.right ||
                       left.token != best.left_token || right.token != best.right_token;
    if (stale) continue;
    left.token = best.result;
    left.next = right.next;
    right.alive = false;
    if (left.next >= 0) symbols[static_cast<std::size_t>(left.next)].previous = best.left;
    offer(left.previous, best.left);
    offer(best.left, left.next);
  }
  for (std::int32_t i = 0; i >= 0 && i < size; i = symbols[static_cast<std::size_t>(i)].next) {
    out.push_back(symbols[static_cast<std::size_t>(i)].token);
  }
}

// Text without user-defined tokens in it.
void Tokenizer::State::encode_plain(std::string_view text, std::vector<TokenId>& out) const {
  std::vector<std::string_view> pieces = {text};
  for (const Pattern& pattern : patterns) {
    std::vector<std::string_view> smaller;
    for (const std::string_view piece : pieces) cut(pattern, piece, smaller);
    pieces = std::move(smaller);
  }
  for (const std::string_view piece : pieces) {
    const TokenId whole = whole_pieces ? whole_piece(piece) : kNoToken;
    if (whole != kNoToken) {
      out.push_back(whole);
    } else {
      encode_piece(piece, out);
    }
  }
}

Result<std::vector<TokenId>> Tokenizer::encode(std::string_view text) const {
  const std::size_t valid = valid_utf8(text);
  if (valid != text.size()) {
    return Status(Code::kInvalidArgument, "text is not UTF-8: byte " + std::to_string(valid) +
                                              " of " + std::to_string(text.size()) +
                                              "; convert it first, for example with iconv");
  }
  std::vector<TokenId> tokens;
  while (!text.empty()) {
    std::size_t at = std::string_view::npos;
    TokenId special = 0;
    for (const TokenId token : state_->user_defined) {
      const std::size_t found = text.find(state_->bytes[token]);
      if (found < at) {
        at = found;
        special = token;
      }
    }
    state_->encode_plain(text.substr(0, at), tokens);
    if (at == std::string_view::npos) break;
    tokens.push_back(special);
    text.remove_prefix(at + state_->bytes[special].size());
  }
  return tokens;
}

std::string Tokenizer::decode(std::span<const TokenId> tokens) const {
  std::string text;
  for (const TokenId token : tokens) {
    if (token < state_->bytes.size() && !is_control(token)) text += state_->bytes[token];
  }
  return text;
}

Result<TokenId> Tokenizer::token(std::string_view name) const {
  const auto found = state_->ids.find(name);
  if (found == state_->ids.end()) {
    return Status(Code::kNotFound, "token \"" + std::string(name) + "\"");
  }
  return found->second;
}

std::optional<TokenId> Tokenizer::begin_token() const { return state_->begin; }

bool Tokenizer::is_control(TokenId token) const {
  return token < state_->kinds.size() && state_->kinds[token] == TokenKind::kControl;
}

std::int64_t Tokenizer::size() const { return static_cast<std::int64_t>(state_->bytes.size()); }

}  // namespace icefield
