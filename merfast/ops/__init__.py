"""Operations with a contract and an eager reference (`afg.py`), and files that only accelerate them (`afg_cpu.py`)."""
