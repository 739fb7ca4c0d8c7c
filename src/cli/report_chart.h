// Charts of an evaluation as inline SVG. Colours are classes of chart_styles(), so that both themes
// and print share the drawing.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "eval/report.h"

namespace headkv::cli {

struct BudgetPoint {
    double rows = 0;
    Estimate value;
};
struct BudgetLine {
    std::string name;
    std::size_t series = 0;  // its colour, dashes and marker: the same in all charts of a page
    std::vector<BudgetPoint> points;
};
struct BudgetChart {
    std::string kind;   // "score", "loss": data-chart of the drawing
    std::string label;  // read out in place of the drawing
    std::vector<BudgetLine> lines;
    std::optional<Estimate> full;  // a line across
    bool from_zero = false;        // the axis begins at 0
};

// Values against rows (logarithmic), with whiskers of the 95 % intervals.
std::string budget_chart(const BudgetChart& chart);
// What the lines are; `full` where that is drawn.
std::string budget_legend(const std::vector<BudgetLine>& lines, bool full);

// Cells of length (across) and depth (down), the score in each.
std::string heat_map_chart(const HeatMap& map, std::string_view name);

std::string chart_styles();

}  // namespace headkv::cli
