// merfast._C: CPU kernels on numpy arrays.
#include "binding.h"
#include "isas.h"

PYBIND11_MODULE(_C, m) {
    m.doc() = "CPU kernels of merfast on numpy arrays; merfast.ops has the tensors and the documentation.";
    m.def("isas", &merfast::isas, py::arg("bf16") = false, "Instruction sets this machine can run, best first.");
    merfast::bind_afg(m);
    merfast::bind_crop_norm(m);
    merfast::bind_decode(m);
    merfast::bind_group_norm_gelu(m);
}
