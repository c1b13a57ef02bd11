#include <optional>
#include <tuple>

#include "afg.h"
#include "binding.h"
#include "isas.h"

namespace merfast {
namespace {

template <class E>
class AfgKernel {
  public:
    // weight, bias, score, absent, guide_weight
    using Weights = std::tuple<py::array, py::array, py::array, py::array, std::optional<py::array>>;
    // x, offsets, guide, out, attention
    using Call = std::tuple<py::array, py::array, std::optional<py::array>, py::array, std::optional<py::array>>;

    AfgKernel(const std::vector<Weights>& weights, const std::string& isa)
        : isa_(find_isa(isa, !std::is_same_v<E, float>)), group_(isa_) {
        for (const Weights& each : weights) add(each);
    }

    void run(std::vector<Call> calls, int threads) const {
        if (threads < 1) throw py::value_error("afg threads: got " + std::to_string(threads) + ", expected at least 1");
        if (calls.size() != group_.size()) {
            throw py::value_error("afg: got " + std::to_string(calls.size()) + " gatherings, expected " +
                                  std::to_string(group_.size()));
        }
        // Copies: another thread may write to the arrays once the GIL is released, after these were checked.
        std::vector<std::vector<int64_t>> bounds(calls.size());
        std::vector<typename AfgGroup<E>::Call> arguments;
        for (std::size_t i = 0; i < calls.size(); ++i) {
            auto& [x, offsets, guide, out, attention] = calls[i];
            const AfgShape& shape = group_.shape(i);
            bounds[i] = rising(offsets, extent("afg x", x, 2, 0));
            const auto sets = static_cast<py::ssize_t>(bounds[i].size()) - 1;
            if (guide.has_value() != (shape.guide_dim > 0)) {
                throw py::value_error(std::string("afg guide: got guide=") + (guide ? "True" : "False") +
                                      " with guide_weight=" + (guide ? "False" : "True") +
                                      ", expected both or neither");
            }
            checked<E>("afg out", out, {sets, shape.dim});
            check_writeable("afg out", out);
            if (attention) {
                checked<float>("afg attention", *attention, {x.shape(0), shape.heads});
                check_writeable("afg attention", *attention);
            }
            arguments.push_back({checked<E>("afg x", x, {x.shape(0), shape.dim}), bounds[i].data(), sets,
                                 guide ? checked<E>("afg guide", *guide, {sets, shape.guide_dim}) : nullptr,
                                 static_cast<E*>(out.mutable_data()), x.shape(0),
                                 attention ? static_cast<float*>(attention->mutable_data()) : nullptr});
        }
        const py::gil_scoped_release release;
        group_.run(arguments, threads);
    }

    std::string isa() const { return isa_name(isa_); }

  private:
    void add(const Weights& weights) {
        const auto& [weight, bias, score, absent, guide_weight] = weights;
        AfgShape shape{};
        shape.width = extent("afg weight", weight, 2, 0);
        shape.dim = extent("afg weight", weight, 2, 1);
        shape.heads = extent("afg score", score, 2, 0);
        if (guide_weight) shape.guide_dim = extent("afg guide_weight", *guide_weight, 2, 1);
        if (shape.width < 1 || shape.dim < 1 || shape.heads < 1 || (guide_weight && shape.guide_dim < 1)) {
            throw py::value_error("afg weights: got an empty dimension, expected at least 1 everywhere");
        }
        if (shape.dim % shape.heads) {
            throw py::value_error("afg weights: got width " + std::to_string(shape.dim) + " and " +
                                  std::to_string(shape.heads) + " heads, expected a multiple");
        }
        typename AfgGroup<E>::Weights pointers{};
        pointers.weight = checked<E>("afg weight", weight, {shape.width, shape.dim});
        pointers.bias = checked<float>("afg bias", bias, {shape.width});
        pointers.score = checked<float>("afg score", score, {shape.heads, shape.width});
        pointers.absent = checked<E>("afg absent", absent, {shape.dim});
        if (guide_weight) {
            pointers.guide_weight = checked<E>("afg guide_weight", *guide_weight, {shape.width, shape.guide_dim});
        }
        group_.add(shape, pointers);
    }

    static void check_writeable(const char* name, const py::array& array) {
        if (!array.writeable()) {
            throw py::value_error(std::string(name) + ": got a read-only array, expected a writeable one");
        }
    }

    static std::vector<int64_t> rising(const py::array& offsets, py::ssize_t rows) {
        const py::ssize_t count = extent("afg offsets", offsets, 1, 0);
        if (count < 1) throw py::value_error("afg offsets: got int64 [0], expected int64 [B + 1]");
        const int64_t* first = checked<int64_t>("afg offsets", offsets, {count});
        std::vector<int64_t> copy(first, first + count);
        bool good = copy.front() == 0 && copy.back() <= rows;
        for (std::size_t b = 1; b < copy.size(); ++b) good = good && copy[b - 1] <= copy[b];
        if (!good) {
            throw py::value_error("afg offsets: got " + std::to_string(copy.front()) + " ... " +
                                  std::to_string(copy.back()) + ", expected to rise from 0 to at most " +
                                  std::to_string(rows));
        }
        return copy;
    }

    Isa isa_;
    AfgGroup<E> group_;
};

template <class E>
void bind(py::module_& m, const char* name) {
    using Kernel = AfgKernel<E>;
    py::class_<Kernel>(m, name)
        .def(py::init<const std::vector<typename Kernel::Weights>&, const std::string&>(), py::arg("weights"),
             py::arg("isa"))
        .def("run", &Kernel::run, py::arg("calls"), py::arg("threads"))
        .def_property_readonly("isa", &Kernel::isa);
}

}  // namespace

void bind_afg(py::module_& m) {
    bind<float>(m, "AfgKernel");
#ifdef MERFAST_X86
    bind<uint16_t>(m, "AfgBf16Kernel");
#endif
}

}  // namespace merfast
