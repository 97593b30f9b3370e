// Token files, what they grant, and the proofs of a handshake.
#include "transport/caller.h"

#include <gmock/gmock.h>

#include "transport/ucx/proof.h"

namespace icefield {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kFile =
    "# who may use what\n"
    "0123456789abcdef  red,green   # a team\n"
    "\n"
    "fedcba9876543210\t*\n";

TEST(TokenFile, GrantsNamespacesPerToken) {
  const auto grants = parse_token_file(kFile);
  ASSERT_TRUE(grants.has_value()) << grants.error().to_string();
  ASSERT_EQ(grants->size(), 2u);
  EXPECT_EQ((*grants)[0].token, "0123456789abcdef");
  EXPECT_THAT((*grants)[0].namespaces, ElementsAre("red", "green"));
  EXPECT_THAT((*grants)[1].namespaces, ElementsAre("*"));
}

TEST(TokenFile, BadLineIsNamedAndItsTokenIsNot) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "without a token"},
      {"# nothing\n", "without a token"},
      {"0123456789abcdef\n", "line 1: write"},
      {"\n0123456789abcdef a b\n", "line 2: write"},
      {"0123456789abcdef a,,b\n", "line 1: a namespace without a name"},
      {"0123456789abcdef a,\n", "line 1: a namespace without a name"},
      {"0123456789abcde a\n", "line 1: token of 15 bytes"},
      {"0123456789abcdef a\n0123456789abcdef b\n", "line 2: token given twice"},
  };
  for (const auto& [text, expected] : cases) {
    const Status status = parse_token_file(text).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << text;
    EXPECT_THAT(status.message(), HasSubstr(expected)) << text;
    EXPECT_THAT(status.message(), testing::Not(HasSubstr("0123456789"))) << text;
  }
  EXPECT_EQ(read_token_file("/nonexistent/tokens").status().code(), Code::kNotFound);
}

TEST(Caller, MayUseWhatItsTokenGrants) {
  const auto grants = parse_token_file(kFile).value();
  const Caller team(grants[0]);
  EXPECT_TRUE(team.may_use("red"));
  EXPECT_TRUE(team.may_use("green"));
  EXPECT_FALSE(team.may_use("blue"));
  EXPECT_FALSE(team.may_use("*"));
  EXPECT_FALSE(team.may_use(""));
  EXPECT_TRUE(Caller(grants[1]).may_use("blue"));
  EXPECT_TRUE(Caller().may_use("blue"));
  for (const Caller& caller : {team, Caller(grants[1]), Caller()}) {
    for (const std::string_view name : {"red", "green", "blue", "*", ""}) {
      EXPECT_EQ(caller.may_use(namespace_id(name)), caller.may_use(name)) << name;
    }
  }
}

TEST(Proof, HoldsForOneTokenAndOneConnection) {
  const auto grants = parse_token_file(kFile).value();
  SeededRng rng(1);
  const ucx::ProofSubject subject{.challenge = ucx::make_challenge(rng),
                                  .incarnation = 1,
                                  .connection = 2,
                                  .worker_address = "address"};
  EXPECT_EQ(subject.challenge.size(), 32u);
  const std::string proof = ucx::make_proof(grants[0].token, subject);
  EXPECT_EQ(ucx::find_grant(grants, subject, proof), &grants[0]);
  EXPECT_EQ(ucx::find_grant(grants, subject, ucx::make_proof("another", subject)), nullptr);
  EXPECT_EQ(ucx::find_grant(grants, subject, proof.substr(1)), nullptr);
  EXPECT_EQ(ucx::find_grant(grants, subject, ""), nullptr);
  ucx::ProofSubject other = subject;
  other.challenge = ucx::make_challenge(rng);
  EXPECT_EQ(ucx::find_grant(grants, other, proof), nullptr);
  other = subject;
  other.incarnation = 3;
  EXPECT_EQ(ucx::find_grant(grants, other, proof), nullptr);
  other = subject;
  other.connection = 3;
  EXPECT_EQ(ucx::find_grant(grants, other, proof), nullptr);
  other = subject;
  other.worker_address += "x";
  EXPECT_EQ(ucx::find_grant(grants, other, proof), nullptr);
}

}  // namespace
}  // namespace icefield
