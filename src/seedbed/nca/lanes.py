"""Two steps of an update on sixteen lanes at once, as vector instructions of whatever processor there is.

Compilers do not find these vectors by themselves (they cannot rule out that arrays overlap), so they are spelled out here for
numba. Lanes are hidden values in the first step and states in the second.
Letters: H 16 hidden values, K the nine neighbors, R rows of the table.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

LANES = 16
_WORD, _REAL, _INDEX = ir.IntType(32), ir.FloatType(), ir.IntType(64)
_WORDS, _REALS = ir.VectorType(_WORD, LANES), ir.VectorType(_REAL, LANES)


def _pointer(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _load(builder: Any, base: Any, offset: Any, kind: Any) -> Any:
    place = builder.bitcast(builder.gep(base, [offset]), kind.as_pointer())
    value = builder.load(place)
    value.align = 4
    return value


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(_WORDS, [0] * LANES))


@intrinsic
def add_rows(typing: Any, table_RH: Any, rows: Any, bias_H: Any, out_H: Any) -> Any:
    """Write max(0, bias + sum of nine int32 rows) to `out_H` as float32."""
    signature = types.void(table_RH, rows, bias_H, out_H)

    def generate(context: Any, builder: Any, sig: Any, given: Any) -> Any:
        table, bias, out = (_pointer(context, builder, sig.args[i], given[i]) for i in (0, 2, 3))
        total = _load(builder, bias, ir.Constant(_INDEX, 0), _WORDS)
        for k in range(9):
            offset = builder.mul(builder.extract_value(given[1], k), ir.Constant(_INDEX, LANES))
            total = builder.add(total, _load(builder, table, offset, _WORDS))
        zero = ir.Constant(_WORDS, [0] * LANES)
        positive = builder.select(builder.icmp_signed(">", total, zero), total, zero)
        stored = builder.store(builder.sitofp(positive, _REALS), builder.bitcast(out, _REALS.as_pointer()))
        stored.align = 4
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def foremost(typing: Any, hidden_H: Any, weights: Any, offsets: Any, block: Any, lane: Any, extra: Any, margin: Any) -> Any:
    """Return (largest logit, bit mask of lanes at most `margin` below it) of block `block` of sixteen states, in float32.

    `weights` are [block, H, lane], `offsets` [block, lane], both flat; `extra` is added at `lane` if that is inside.
    """
    signature = types.Tuple((types.float32, types.int32))(hidden_H, weights, offsets, block, lane, extra, margin)

    def generate(context: Any, builder: Any, sig: Any, given: Any) -> Any:
        hidden, weight, offset = (_pointer(context, builder, sig.args[i], given[i]) for i in (0, 1, 2))
        start = builder.mul(given[3], ir.Constant(_INDEX, LANES))
        total = _load(builder, offset, start, _REALS)
        spread = _splat(builder, builder.trunc(given[4], _WORD), _WORDS)
        here = builder.icmp_signed("==", spread, ir.Constant(_WORDS, list(range(LANES))))
        none = ir.Constant(_REALS, [0.0] * LANES)
        total = builder.fadd(total, builder.select(here, _splat(builder, given[5], _REALS), none))
        kind = ir.FunctionType(_REALS, [_REALS] * 3)
        multiply_add = get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
        others = none
        for h in range(LANES):
            value = builder.load(builder.gep(hidden, [ir.Constant(_INDEX, h)]))
            row = builder.add(builder.mul(start, ir.Constant(_INDEX, LANES)), ir.Constant(_INDEX, h * LANES))
            inputs = _splat(builder, value, _REALS), _load(builder, weight, row, _REALS)
            if h % 2:  # two sums side by side: neither waits for the other
                others = builder.call(multiply_add, [*inputs, others])
            else:
                total = builder.call(multiply_add, [*inputs, total])
        total = builder.fadd(total, others)
        largest = total
        for step in (8, 4, 2, 1):
            turned = ir.Constant(_WORDS, [(i + step) % LANES for i in range(LANES)])
            moved = builder.shuffle_vector(largest, ir.Constant(_REALS, ir.Undefined), turned)
            largest = builder.select(builder.fcmp_ordered(">", largest, moved), largest, moved)
        limit = builder.fsub(largest, _splat(builder, given[6], _REALS))
        mask = builder.bitcast(builder.fcmp_ordered(">=", total, limit), ir.IntType(LANES))
        top = builder.extract_element(largest, ir.Constant(_WORD, 0))
        return context.make_tuple(builder, sig.return_type, (top, builder.zext(mask, _WORD)))

    return signature, generate


@intrinsic
def lone_lane(typing: Any, mask: Any) -> Any:
    """Return the lane of a mask with one bit, or -1 if it has more."""
    signature = types.int64(mask)

    def generate(context: Any, builder: Any, sig: Any, given: Any) -> Any:
        one = ir.Constant(_WORD, 1)
        rest = builder.and_(given[0], builder.sub(given[0], one))
        lane = builder.cttz(given[0], ir.Constant(ir.IntType(1), 0))
        lone = builder.icmp_unsigned("==", rest, ir.Constant(_WORD, 0))
        return builder.select(lone, builder.zext(lane, _INDEX), ir.Constant(_INDEX, -1))

    return signature, generate
