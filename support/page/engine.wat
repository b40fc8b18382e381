;; The one matrix product behind every network of the page: c += a b.
;;
;; a is (m, k): element (i, l) stands at a + i * a_row + l * a_step. So a matrix can be read
;; transposed, and a convolution can read overlapping windows of a picture.
;; b is (k, n), row after row. c is (m, n): row i stands at c + i * c_row.
;; All addresses and distances are in bytes; n is a multiple of 8.
;;
;; Columns are taken eight at a time, as two vectors of four numbers. Rows are taken four at a time,
;; so that what is read of b is used four times; those left over one at a time.
;;
;; wat2wasm engine.wat assembles it; engine.wasm.txt holds those bytes in base64.
(module
  (import "page" "memory" (memory 1))

  (func (export "multiply")
    (param $a i32) (param $a_row i32) (param $a_step i32)
    (param $b i32)
    (param $c i32) (param $c_row i32)
    (param $m i32) (param $k i32) (param $n i32)
    (local $b_row i32) (local $rows_left i32) (local $l i32)
    (local $a0 i32) (local $a1 i32) (local $a2 i32) (local $a3 i32)
    (local $c0 i32) (local $c1 i32) (local $c2 i32) (local $c3 i32)
    (local $b_now i32) (local $left v128) (local $right v128) (local $factor v128)
    (local $left0 v128) (local $left1 v128) (local $left2 v128) (local $left3 v128)
    (local $right0 v128) (local $right1 v128) (local $right2 v128) (local $right3 v128)
    (local.set $b_row (i32.shl (local.get $n) (i32.const 2)))

    (block $no_columns_left
      (loop $columns
        (br_if $no_columns_left (i32.eqz (local.get $n)))
        (local.set $a0 (local.get $a))
        (local.set $c0 (local.get $c))
        (local.set $rows_left (local.get $m))

        (block $fewer_than_four
          (loop $four_rows
            (br_if $fewer_than_four (i32.lt_u (local.get $rows_left) (i32.const 4)))
            (local.set $a1 (i32.add (local.get $a0) (local.get $a_row)))
            (local.set $a2 (i32.add (local.get $a1) (local.get $a_row)))
            (local.set $a3 (i32.add (local.get $a2) (local.get $a_row)))
            (local.set $c1 (i32.add (local.get $c0) (local.get $c_row)))
            (local.set $c2 (i32.add (local.get $c1) (local.get $c_row)))
            (local.set $c3 (i32.add (local.get $c2) (local.get $c_row)))
            (local.set $left0 (v128.load (local.get $c0)))
            (local.set $right0 (v128.load offset=16 (local.get $c0)))
            (local.set $left1 (v128.load (local.get $c1)))
            (local.set $right1 (v128.load offset=16 (local.get $c1)))
            (local.set $left2 (v128.load (local.get $c2)))
            (local.set $right2 (v128.load offset=16 (local.get $c2)))
            (local.set $left3 (v128.load (local.get $c3)))
            (local.set $right3 (v128.load offset=16 (local.get $c3)))
            (local.set $b_now (local.get $b))
            (local.set $l (local.get $k))
            (loop $sum
              (local.set $left (v128.load (local.get $b_now)))
              (local.set $right (v128.load offset=16 (local.get $b_now)))
              (local.set $factor (v128.load32_splat (local.get $a0)))
              (local.set $left0 (f32x4.add (local.get $left0)
                (f32x4.mul (local.get $factor) (local.get $left))))
              (local.set $right0 (f32x4.add (local.get $right0)
                (f32x4.mul (local.get $factor) (local.get $right))))
              (local.set $factor (v128.load32_splat (local.get $a1)))
              (local.set $left1 (f32x4.add (local.get $left1)
                (f32x4.mul (local.get $factor) (local.get $left))))
              (local.set $right1 (f32x4.add (local.get $right1)
                (f32x4.mul (local.get $factor) (local.get $right))))
              (local.set $factor (v128.load32_splat (local.get $a2)))
              (local.set $left2 (f32x4.add (local.get $left2)
                (f32x4.mul (local.get $factor) (local.get $left))))
              (local.set $right2 (f32x4.add (local.get $right2)
                (f32x4.mul (local.get $factor) (local.get $right))))
              (local.set $factor (v128.load32_splat (local.get $a3)))
              (local.set $left3 (f32x4.add (local.get $left3)
                (f32x4.mul (local.get $factor) (local.get $left))))
              (local.set $right3 (f32x4.add (local.get $right3)
                (f32x4.mul (local.get $factor) (local.get $right))))
              (local.set $a0 (i32.add (local.get $a0) (local.get $a_step)))
              (local.set $a1 (i32.add (local.get $a1) (local.get $a_step)))
              (local.set $a2 (i32.add (local.get $a2) (local.get $a_step)))
              (local.set $a3 (i32.add (local.get $a3) (local.get $a_step)))
              (local.set $b_now (i32.add (local.get $b_now) (local.get $b_row)))
              (br_if $sum (local.tee $l (i32.sub (local.get $l) (i32.const 1)))))
            (v128.store (local.get $c0) (local.get $left0))
            (v128.store offset=16 (local.get $c0) (local.get $right0))
            (v128.store (local.get $c1) (local.get $left1))
            (v128.store offset=16 (local.get $c1) (local.get $right1))
            (v128.store (local.get $c2) (local.get $left2))
            (v128.store offset=16 (local.get $c2) (local.get $right2))
            (v128.store (local.get $c3) (local.get $left3))
            (v128.store offset=16 (local.get $c3) (local.get $right3))
            ;; a0 stands at the end of its row: the next four rows begin four rows below its start.
            (local.set $a0 (i32.add
              (i32.sub (local.get $a0) (i32.mul (local.get $k) (local.get $a_step)))
              (i32.shl (local.get $a_row) (i32.const 2))))
            (local.set $c0 (i32.add (local.get $c3) (local.get $c_row)))
            (local.set $rows_left (i32.sub (local.get $rows_left) (i32.const 4)))
            (br $four_rows)))

        (block $no_rows_left
          (loop $one_row
            (br_if $no_rows_left (i32.eqz (local.get $rows_left)))
            (local.set $left0 (v128.load (local.get $c0)))
            (local.set $right0 (v128.load offset=16 (local.get $c0)))
            (local.set $a1 (local.get $a0))
            (local.set $b_now (local.get $b))
            (local.set $l (local.get $k))
            (loop $sum
              (local.set $factor (v128.load32_splat (local.get $a1)))
              (local.set $left0 (f32x4.add (local.get $left0)
                (f32x4.mul (local.get $factor) (v128.load (local.get $b_now)))))
              (local.set $right0 (f32x4.add (local.get $right0)
                (f32x4.mul (local.get $factor) (v128.load offset=16 (local.get $b_now)))))
              (local.set $a1 (i32.add (local.get $a1) (local.get $a_step)))
              (local.set $b_now (i32.add (local.get $b_now) (local.get $b_row)))
              (br_if $sum (local.tee $l (i32.sub (local.get $l) (i32.const 1)))))
            (v128.store (local.get $c0) (local.get $left0))
            (v128.store offset=16 (local.get $c0) (local.get $right0))
            (local.set $a0 (i32.add (local.get $a0) (local.get $a_row)))
            (local.set $c0 (i32.add (local.get $c0) (local.get $c_row)))
            (local.set $rows_left (i32.sub (local.get $rows_left) (i32.const 1)))
            (br $one_row)))

        (local.set $b (i32.add (local.get $b) (i32.const 32)))
        (local.set $c (i32.add (local.get $c) (i32.const 32)))
        (local.set $n (i32.sub (local.get $n) (i32.const 8)))
        (br $columns)))))
