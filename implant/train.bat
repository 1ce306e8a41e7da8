@echo off
rem The reference's settings. Paths are relative to where you are; more flags are passed on, and win:
rem   implant\train.bat --train_json D:\implants\augmented_train.json --val_json D:\implants\augmented_val.json
accelerate launch "%~dp0train.py" ^
    --train_json augmented_train.json ^
    --val_json augmented_val.json ^
    --company_checkpoint runs/implant_company/best ^
    --model_checkpoint runs/implant_model/best ^
    --attention_type triple ^
    --unfreeze_schedule 20 40 ^
    --epochs 50 ^
    --mixed_precision fp16 ^
    %*
