@echo off
rem Strategy 2 of the README, maximum performance. Paths are relative to the working directory; further flags override:
rem   ct_multilabel\train.bat --slices_path D:\data\slices --resume
accelerate launch "%~dp0train.py" ^
    --slices_path slices ^
    --model efficientnet_b0 ^
    --use-attention cbam ^
    --loss-type asl ^
    --use-advanced-aug ^
    --progressive-unfreeze ^
    --unfreeze-epoch 8 ^
    --batch-size 32 ^
    --learning-rate 1e-4 ^
    --epochs 100 ^
    --early-stopping-patience 15 ^
    --mixed_precision ^
    %*
