// What commands print: aligned tables, JSON of one form, and arguments that are read strictly.
#include "tools/report.h"

#include <gtest/gtest.h>

#include "tools/command_line.h"

namespace icefield {
namespace {

TEST(TableTest, TextIsLeftNumbersAreRight) {
  Table table({"name", "count"});
  table.add({"a", "7"});
  table.add({"long name", "1234"});
  EXPECT_EQ(table.text(),
            "name       count\n"
            "─────────  ─────\n"
            "a              7\n"
            "long name   1234\n");
}

TEST(ReportTest, JsonHasTheFormOfAllCommands) {
  Report report("icefield test");
  report.add({.name = "speed",
              .params = {{"bytes", 64}},
              .value = 2,
              .unit = "GB/s",
              .against = "memcpy",
              .ratio = 0.5,
              .better = "higher"});
  report.add({.name = "alone", .value = 1, .unit = "s"});
  const auto json = nlohmann::json::parse(report.json({{"note", "x"}}));
  EXPECT_EQ(json["command"], "icefield test");
  EXPECT_EQ(json["machine"], machine_name());
  EXPECT_EQ(json["note"], "x");
  ASSERT_EQ(json["figures"].size(), 2u);
  const auto& speed = json["figures"][0];
  EXPECT_EQ(speed["name"], "speed");
  EXPECT_EQ(speed["params"]["bytes"], 64);
  EXPECT_EQ(speed["value"], 2);
  EXPECT_EQ(speed["unit"], "GB/s");
  EXPECT_EQ(speed["against"], "memcpy");
  EXPECT_EQ(speed["ratio"], 0.5);
  EXPECT_EQ(speed["better"], "higher");
  EXPECT_FALSE(json["figures"][1].contains("ratio"));
}

TEST(NumbersTest, AreReadStrictly) {
  EXPECT_EQ(parse_numbers("budget", "64,256,all", 1).value(),
            (std::vector<std::int64_t>{64, 256, kAllNumber}));
  for (const char* bad : {"", "64,", "x", "6 4", "-3", "0", "99999999999999999999"}) {
    const auto parsed = parse_numbers("budget", bad, 1);
    ASSERT_FALSE(parsed.has_value()) << bad;
    EXPECT_EQ(parsed.error().code(), Code::kInvalidArgument);
    EXPECT_NE(parsed.error().message().find("--budget"), std::string::npos)
        << parsed.error().message();
  }
  EXPECT_EQ(parse_breadths("16,all,rule").value().size(), 3u);
  for (const char* bad : {"", "16,", ",16", "0", "every"}) {
    EXPECT_EQ(parse_breadths(bad).status().code(), Code::kInvalidArgument) << bad;
  }
  EXPECT_EQ(split_list("a,,b"), (std::vector<std::string>{"a", "", "b"}));
  EXPECT_EQ(split_list(""), std::vector<std::string>{""});
  EXPECT_TRUE(check_range("threads", 256, 1, 256).ok());
  EXPECT_EQ(check_range("threads", 257, 1, 256).message(), "--threads=257: expected 1 to 256");
  EXPECT_EQ(check_range("heads", -1, 0).message(), "--heads=-1: expected 0 to 2147483647");
  EXPECT_EQ(number_text(kAllNumber), "all");
  EXPECT_EQ(read_file("/no/such/file").status().code(), Code::kInvalidArgument);
}

TEST(StatisticsTest, DeviationIsTheMedianDistanceFromTheMedian) {
  EXPECT_EQ(quantile({4, 1, 3, 2, 100}, 0.5), 3);
  EXPECT_EQ(deviation({4, 1, 3, 2, 100}), 1);
  EXPECT_EQ(deviation({}), 0);
}

TEST(UnitsTest, AreForPeople) {
  EXPECT_EQ(bytes_text(37.2e6), "37.2 MB");
  EXPECT_EQ(percent_text(0.225), "22.5 %");
  EXPECT_EQ(number_text(0.00312, 4), "0.0031");
}

}  // namespace
}  // namespace icefield
